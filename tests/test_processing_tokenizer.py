"""A tokenizer is what its files say, whatever the model's type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.processing.tokenizer import load_tokenizer

TEXT = "Angle ABC measures 43 degrees."


@pytest.fixture(params=["qwen2", "qwen2_5_vl", None])
def letter_by_letter(request, tmp_path) -> Path:
    """The directory of a model whose tokenizer.json splits text otherwise than Qwen's, into single characters."""
    folder = tmp_path / "model"
    shutil.copytree(SMALL_TOKENIZER, folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "."
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    if request.param:
        (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return folder


def test_text_is_split_as_tokenizer_json_says(letter_by_letter):
    tokenizer = load_tokenizer(letter_by_letter, 10_000)
    assert [tokenizer.decode([token]) for token in tokenizer(TEXT).input_ids] == list(TEXT)
