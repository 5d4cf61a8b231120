"""The tokenizers of the embedded models are what the repository's own recipe makes."""

from __future__ import annotations

import pytest

from perception_r1_jax.assets import MINI_JUDGE, MINI_POLICY
from scripts.make_tokenizer import RECIPES, write_tokenizer


@pytest.mark.parametrize(("corpus", "model"), [("world", MINI_POLICY), ("judge", MINI_JUDGE)])
def test_the_recipe_makes_the_tokenizer(corpus, model, tmp_path):
    write_tokenizer(tmp_path, RECIPES[corpus])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (model / name).read_bytes()
