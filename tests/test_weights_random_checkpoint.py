"""Random checkpoints: complete, reproducible, and sized by their tokenizer."""

from __future__ import annotations

import json

import numpy as np
import pytest
import transformers

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.models import load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.weights.names import hf_tensors, nested_name
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.safetensors_io import stored_tensors, weight_files
from perception_r1_jax.weights.side_files import PREPROCESSOR_FILE
from tests.pieces import trained, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint") / "vl")


def test_it_is_a_complete_published_directory(folder):
    assert {"config.json", "generation_config.json", "preprocessor_config.json", "chat_template.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert len(weight_files(folder)) >= 2
    expected = {name: tensor.shape for name, tensor in hf_tensors(load_config(folder)).items()}
    assert {tensor.name: tensor.shape for tensor in stored_tensors(folder)} == expected


def test_matrices_are_large_and_no_bias_or_norm_is_trivial(folder):
    for tensor in stored_tensors(folder):
        values = tensor.read()
        matrix = values.ndim > 1
        assert 0.1 < values.std() < 0.3, tensor.name
        assert matrix or np.unique(values).size == values.size


def test_token_ids_follow_the_tokenizer(folder):
    config, tokenizer = load_config(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = (config.image_token_id, config.vision_start_token_id, config.vision_pad_token_id)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|image_pad|>", "<|vision_start|>", "<|vision_pad|>"]
    assert len(tokenizer) <= config.vocab_size < len(tokenizer) + 64
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(stops) == ["<|im_end|>", "<|endoftext|>"]


def test_the_published_tokenizer_can_be_used(shared_data, tmp_path):
    source = shared_data / "qwen2_5_vl_tokenizer"
    folder = write_random_checkpoint(
        tmp_path, "qwen2", {"hidden_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": True}, source
    )
    content = json.loads((folder / "config.json").read_text())
    assert (content["eos_token_id"], content["bos_token_id"], content["vocab_size"]) == (151645, 151643, 151680)
    assert (folder / "vocab.json").read_bytes() == (source / "vocab.json").read_bytes()
    assert not (folder / "preprocessor_config.json").exists()


def test_a_sentencepiece_tokenizer_can_be_used(tmp_path):
    source = write_tokenizer(tmp_path / "tokenizer", trained())
    folder = write_random_checkpoint(tmp_path / "model", "mistral", tokenizer_dir=source)
    content = json.loads((folder / "config.json").read_text())
    assert (content["bos_token_id"], content["eos_token_id"], content["vocab_size"]) == (1, 2, 640)
    assert (folder / "tokenizer.model").read_bytes() == trained()
    assert Processor.from_directory(folder).stop_ids == (2, 1)


def test_seed_and_name_decide_the_weights(folder, tmp_path):
    again = write_random_checkpoint(tmp_path / "again", config_overrides={"num_hidden_layers": 1})
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    values = {path: {t.name: t.read() for t in stored_tensors(path)} for path in (folder, again, other)}
    for name, array in values[again].items():
        np.testing.assert_array_equal(array, values[folder][name])
    assert all((array != values[other][name]).any() for name, array in values[folder].items())


def test_the_nested_layout_describes_the_same_model(folder, tmp_path):
    nested = write_random_checkpoint(tmp_path / "nested", nested=True)
    assert "text_config" in json.loads((nested / "config.json").read_text())
    assert load_config(nested) == load_config(folder)
    assert {t.name for t in stored_tensors(nested)} == {nested_name(t.name) for t in stored_tensors(folder)}


def test_a_tokenizer_without_the_pictures_tokens_is_named(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (SMALL_TOKENIZER / name).read_text().replace("<|image_pad|>", "<|other|>")
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=r"has no <\|image_pad\|>"):
        write_random_checkpoint(tmp_path / "out", tokenizer_dir=tmp_path)


def test_an_unknown_family_is_named(tmp_path):
    with pytest.raises(ValueError, match="family 'gemma' is not known"):
        write_random_checkpoint(tmp_path, "gemma")


TURNS = [
    [{"role": "user", "content": "Find x."}],
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Find x."}]}],
    [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "content": [{"type": "text", "text": " a"}, {"type": "image"}, {"type": "text", "text": "\n"}],
        },
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": [{"type": "video"}]},
    ],
]


@pytest.mark.parametrize("messages", TURNS)
@pytest.mark.parametrize("prompt", [True, False])
def test_the_small_tokenizers_template_behaves_as_the_published_one(shared_data, messages, prompt):
    ours = transformers.AutoTokenizer.from_pretrained(SMALL_TOKENIZER)
    published = json.loads((shared_data / "qwen2_5_vl_tokenizer" / "chat_template.json").read_text())["chat_template"]
    render = {"tokenize": False, "add_generation_prompt": prompt}
    expected = ours.apply_chat_template(messages, chat_template=published, **render)
    assert ours.apply_chat_template(messages, **render) == expected


def test_the_small_tokenizer_keeps_digits_single_and_any_text():
    tokenizer = transformers.AutoTokenizer.from_pretrained(SMALL_TOKENIZER)
    assert tokenizer.tokenize("x = 123.45") == ["x", "Ġ=", "Ġ", "1", "2", "3", ".", "4", "5"]
    for text in ("<think>\n∠ABC = 90°, 中文 é\t</think>", "  two  spaces\r\n", "👍"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    specials = tokenizer("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>").input_ids
    assert [i for i in specials if i >= tokenizer.vocab_size] == [1501, 1503, 1506, 1504, 1502]
    assert sum(file.stat().st_size for file in SMALL_TOKENIZER.iterdir()) < 100_000


def test_without_spread_it_is_the_usual_initialisation(tmp_path):
    for tensor in stored_tensors(write_random_checkpoint(tmp_path, scale=1.0, spread=0.0)):
        values = tensor.read()
        if values.ndim == 1:
            assert (values == (0.0 if tensor.name.endswith("bias") else 1.0)).all(), tensor.name
        else:
            assert values.std() == pytest.approx(0.02, rel=0.1), tensor.name


def test_an_override_of_the_preprocessor_leaves_its_other_fields(tmp_path):
    usual, other = (
        json.loads((write_random_checkpoint(tmp_path / name, **options) / PREPROCESSOR_FILE).read_text())
        for name, options in (("a", {}), ("b", {"preprocessor_overrides": {"image_std": [1, 1, 1]}}))
    )
    assert other == usual | {"image_std": [1, 1, 1]} != usual
