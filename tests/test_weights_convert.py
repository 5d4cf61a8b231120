"""There and back: difference exactly 0, and transformers reads what is written."""

from __future__ import annotations

import json
from unittest import mock

import numpy as np
import pytest
from safetensors import SafetensorError

from perception_r1_jax.models import load_config
from perception_r1_jax.weights import CheckpointError, convert, convert_huggingface, export_huggingface
from perception_r1_jax.weights.names import published_name
from perception_r1_jax.weights.random_checkpoint import FAMILIES, write_random_checkpoint
from perception_r1_jax.weights.safetensors_io import stored_tensors, weight_files

SHARD_BYTES = 200_000
CASES = [
    pytest.param(family, {"nested": nested, "config_overrides": {"tie_word_embeddings": tied}, "dtype": dtype})
    for family in ("qwen2_5_vl", "qwen2", "mistral")
    for nested, tied, dtype in ((False, False, "bfloat16"), (False, True, "float32"), (True, False, "float16"))
]


def _tensors(folder):
    return {published_name(tensor.name): tensor.read() for tensor in stored_tensors(folder)}


def _there_and_back(tmp_path, source):
    convert_huggingface(source, tmp_path / "jax")
    export_huggingface(tmp_path / "jax", tmp_path / "back", max_shard_bytes=SHARD_BYTES)
    return tmp_path / "back"


@pytest.mark.parametrize(("family", "options"), CASES)
def test_there_and_back_is_exact(tmp_path, family, options):
    source = write_random_checkpoint(tmp_path / "hf", family, **options)
    back = _there_and_back(tmp_path, source)
    before, after = _tensors(source), _tensors(back)
    assert {tensor.name for tensor in stored_tensors(back)} == set(before)
    assert ("lm_head.weight" in after) == (not options["config_overrides"]["tie_word_embeddings"])
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    assert load_config(back) == load_config(source)
    content = json.loads((back / "config.json").read_text())
    assert content["torch_dtype"] == options["dtype"]
    assert not {"text_config", "rope_parameters", "dtype"} & set(content)


def test_side_files_go_there_and_back(tmp_path):
    source = write_random_checkpoint(tmp_path / "hf")
    back = _there_and_back(tmp_path, source)
    for file in source.iterdir():
        if ".safetensors" not in file.name:
            assert (back / file.name).read_bytes() == file.read_bytes(), file.name
            assert (tmp_path / "jax" / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(weight_files(back)) > 5


def test_the_dtype_can_be_changed_on_the_way(tmp_path):
    source = write_random_checkpoint(tmp_path / "hf", "qwen2")
    convert_huggingface(source, tmp_path / "half", "bfloat16")
    export_huggingface(tmp_path / "half", tmp_path / "full", "float32")
    after = _tensors(tmp_path / "full")
    for name, array in _tensors(source).items():
        np.testing.assert_array_equal(after[name], array.astype("bfloat16").astype("float32"))
    assert json.loads((tmp_path / "full" / "config.json").read_text())["torch_dtype"] == "float32"


def test_nothing_is_overwritten(tmp_path):
    source, file = write_random_checkpoint(tmp_path / "hf", "qwen2"), tmp_path / "file"
    (tmp_path / "jax").mkdir()
    convert_huggingface(source, tmp_path / "jax")
    file.write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for write, model in ((convert_huggingface, source), (export_huggingface, tmp_path / "jax")):
        for out in (source, tmp_path / "jax", file):
            with pytest.raises(CheckpointError, match=f"^{out} is taken: choose a new or empty directory"):
                write(model, out)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_what_cannot_be_written_leaves_the_folder_free(tmp_path, monkeypatch):
    """As on a full disk; each library has errors of its own."""
    source, out = write_random_checkpoint(tmp_path / "hf", "qwen2"), tmp_path / "out"
    convert_huggingface(source, tmp_path / "jax")
    monkeypatch.setattr(convert.ocp, "save", mock.Mock(side_effect=ValueError("no space")))
    monkeypatch.setattr(convert, "publish_preprocessor", mock.Mock(side_effect=SafetensorError("no space")))
    for write, model in ((convert_huggingface, source), (export_huggingface, tmp_path / "jax")):
        with pytest.raises(CheckpointError, match=f"^{out} could not be written: no space. Free space"):
            write(model, out)
        assert list(out.iterdir()) == []


def test_nothing_is_converted_twice(tmp_path):
    source = write_random_checkpoint(tmp_path / "hf", "qwen2")
    convert_huggingface(source, tmp_path / "jax")
    with pytest.raises(CheckpointError, match="is a converted checkpoint already"):
        convert_huggingface(tmp_path / "jax", tmp_path / "jax2")
    with pytest.raises(CheckpointError, match="is a Hugging Face directory already"):
        export_huggingface(source, tmp_path / "back")


def test_another_architecture_is_refused(tmp_path):
    source = write_random_checkpoint(tmp_path / "hf", "qwen2")
    content = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(content | {"model_type": "gemma"}))
    with pytest.raises(ValueError, match="model_type 'gemma' is not supported"):
        convert_huggingface(source, tmp_path / "jax")
    assert not (tmp_path / "jax").exists()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_finds_every_tensor_and_no_other(tmp_path, family, tied):
    pytest.importorskip("torch")
    import transformers

    vl = {"qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration}
    architecture = vl.get(family, transformers.AutoModelForCausalLM)
    source = write_random_checkpoint(tmp_path / "hf", family, {"tie_word_embeddings": tied})
    model, report = architecture.from_pretrained(_there_and_back(tmp_path, source), output_loading_info=True)
    assert not any(report.values()), report
    assert model.config.tie_word_embeddings == tied
    model.save_pretrained(tmp_path / "theirs")  # and what transformers 5 writes is read
    convert_huggingface(tmp_path / "theirs", tmp_path / "again")
    export_huggingface(tmp_path / "again", tmp_path / "published")
    before, after = _tensors(source), _tensors(tmp_path / "published")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    assert load_config(tmp_path / "published") == load_config(source)
