"""Model shapes from `config.json`: every published size, both layouts, and what is not covered."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import transformers

from perception_r1_jax.models import VisionConfig, abstract_params, count_params, load_config
from tests import tiny

MODELS = [f"Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")]
MODELS += [f"Qwen2.5-{size}-Instruct" for size in ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")]
WITH_FILES = ["Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-7B-Instruct", "Qwen2.5-32B-Instruct"]
TOKEN_IDS = {
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
}


def flat_config(entry: dict) -> dict:
    """A `config.json` in the published layout from an entry of the table of sizes."""
    text = {name: value for name, value in entry["text"].items() if name != "attention_qkv_bias"}
    if entry["vision"] is None:
        return {"model_type": "qwen2", **text}
    scaling = {"type": "mrope", "mrope_section": entry["mrope_section"]}
    return {"model_type": "qwen2_5_vl", **text, **TOKEN_IDS, "rope_scaling": scaling, "vision_config": entry["vision"]}


def as_transformers_5(config: dict, folder) -> dict:
    """The same config as transformers 5 saves it: nested for a vision-language model."""
    config = copy.deepcopy(config)
    config.pop("head_dim", None)  # no published config has this field
    transformers.AutoConfig.for_model(**config).save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.fixture(scope="module")
def table(shared_data) -> dict:
    return json.loads((shared_data / "qwen_configs" / "config_table.json").read_text())


@pytest.fixture
def vl() -> dict:
    """A small Qwen2.5-VL, flat."""
    return {
        "model_type": "qwen2_5_vl",
        "vocab_size": 128,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        **{name: i for i, name in enumerate(TOKEN_IDS)},
        "vision_config": {
            "depth": 3,
            "hidden_act": "silu",
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [0, 2],
        },
    }


SMALL = dataclasses.replace(
    tiny.CONFIG,
    vocab_size=128,
    tie_embeddings=True,
    rope_theta=50000.0,
    rms_norm_eps=1e-5,
    mrope_section=(2, 1, 1),
    vision=VisionConfig(3, 16, 24, 2, 32, (0, 2)),
    vision_start_token_id=0,
    vision_end_token_id=1,
    vision_pad_token_id=2,
    image_token_id=3,
    video_token_id=4,
)


@pytest.mark.parametrize("name", MODELS)
def test_every_published_size(table, tmp_path, name):
    entry = table[name]
    config = load_config(flat_config(entry))
    text, vision = entry["text"], entry["vision"]
    assert (config.num_layers, config.num_heads) == (text["num_hidden_layers"], text["num_attention_heads"])
    assert config.head_dim == text["head_dim"]
    assert config.tie_embeddings == text["tie_word_embeddings"] == ("head" not in abstract_params(config)["decoder"])
    assert (config.vision is None) == (vision is None)
    if vision is not None:
        assert config.vision.full_attention_layers == tuple(vision["fullatt_block_indexes"])
        assert config.mrope_section == tuple(entry["mrope_section"])
    assert load_config(as_transformers_5(flat_config(entry), tmp_path)) == config


@pytest.mark.parametrize("name", WITH_FILES)
def test_published_files_agree_with_the_table(shared_data, table, name):
    assert load_config(shared_data / "qwen_configs" / name) == load_config(flat_config(table[name]))


def test_flat(vl):
    assert load_config(vl) == SMALL


def test_nested(vl, tmp_path):
    nested = as_transformers_5(vl, tmp_path)
    assert "hidden_size" not in nested
    assert nested["text_config"]["hidden_size"] == 32
    assert load_config(nested) == SMALL
    assert load_config(tmp_path) == SMALL


@pytest.mark.parametrize(
    ("outer", "inner", "tied"),
    [
        (True, None, True),
        (False, None, False),
        (None, True, True),
        (None, False, False),
        (False, True, True),
        (True, False, True),
        (None, None, False),
    ],
)
def test_tied_embeddings_are_read_from_both_places_as_transformers_does(vl, tmp_path, outer, inner, tied):
    nested = as_transformers_5(vl, tmp_path)
    for place, value in ((nested, outer), (nested["text_config"], inner)):
        place.pop("tie_word_embeddings", None)
        if value is not None:
            place["tie_word_embeddings"] = value
    assert load_config(nested).tie_embeddings == tied
    assert transformers.AutoConfig.for_model(**nested).tie_word_embeddings == tied


def test_a_text_model_has_no_vision(vl):
    text = {name: value for name, value in vl.items() if name not in ("vision_config", "rope_scaling", *TOKEN_IDS)}
    config = load_config(text | {"model_type": "qwen2", "rope_scaling": None})
    assert config.vision is config.mrope_section is config.image_token_id is None
    assert config.head_dim == 8


MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32768,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
"""Mistral-7B-Instruct-v0.3."""


def test_a_mistral_has_no_biases(tmp_path):
    config = load_config(MISTRAL)
    assert (config.head_dim, config.attention_bias, config.rms_norm_eps) == (128, False, 1e-5)
    assert set(abstract_params(config)["decoder"]["layers"]["attention"]["q"]) == {"kernel"}
    assert count_params(config) == 7_248_023_552  # as published
    assert load_config(as_transformers_5(MISTRAL, tmp_path)) == config


@pytest.mark.parametrize(
    ("family", "field", "value", "message"),
    [
        (
            "mistral",
            "sliding_window",
            4096,
            "sliding_window 4096 is not covered. .* none from v0.2 on. .* set it to null",
        ),
        ("llama", "attention_bias", True, "attention_bias is True; only False is covered"),
        ("llama", "mlp_bias", True, "mlp_bias is True; only False is covered"),
        ("llama", "rope_scaling", {"rope_type": "llama3", "factor": 8.0}, "rotary scaling 'llama3' is not covered"),
    ],
)
def test_what_these_families_may_have_beside_is_named(family, field, value, message):
    with pytest.raises(ValueError, match=f"^config: {message}"):
        load_config(MISTRAL | {"model_type": family, field: value})


def test_the_first_llamas_leave_out_the_base_of_their_positions():
    bare = {name: value for name, value in MISTRAL.items() if name != "rope_theta"}
    assert load_config(bare | {"model_type": "llama"}).rope_theta == 10_000.0
    with pytest.raises(ValueError, match="field 'rope_theta' is missing"):
        load_config(bare)


def change(config: dict, path: str, value) -> dict:
    *parents, name = path.split(".")
    inner = config
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "model_type",
            "qwen2_vl",
            "model_type 'qwen2_vl' is not supported; this project runs qwen2_5_vl, qwen2, mistral, llama",
        ),
        ("model_type", None, "model_type None is not supported"),
        ("use_sliding_window", True, "use_sliding_window is True; only False is covered"),
        ("hidden_act", "gelu", "hidden_act is 'gelu'; only 'silu' is covered"),
        ("vision_config.hidden_act", "quick_gelu", "hidden_act is 'quick_gelu'"),
        ("rope_scaling", {"type": "yarn", "factor": 4.0, "mrope_section": [2, 1, 1]}, "rotary scaling 'yarn'"),
        ("rope_scaling.mrope_section", [2, 2, 1], r"mrope_section \[2, 2, 1\] must sum to 4"),
        ("vision_config.window_size", 224, "vision windows of 224 pixels, patches of 14 and merge size 2"),
        ("vision_config.patch_size", 16, "patches of 16"),
        ("vision_config.spatial_merge_size", 4, "merge size 4"),
        ("vision_config.out_hidden_size", 64, "out_hidden_size 64 of the vision tower is not hidden_size 32"),
        ("num_key_value_heads", 3, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
    ],
)
def test_what_is_not_covered_is_named(vl, path, value, message):
    with pytest.raises(ValueError, match=f"^config: .*{message}"):
        load_config(change(vl, path, value))


@pytest.mark.parametrize(
    "path", ["hidden_size", "rope_theta", "image_token_id", "vision_config", "vision_config.depth"]
)
def test_a_missing_field_is_named(vl, path):
    *parents, name = path.split(".")
    (vl[parents[0]] if parents else vl).pop(name)
    with pytest.raises(ValueError, match=f"field '{name}' is missing"):
        load_config(vl)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist. Give a Hugging Face model directory"):
        load_config(tmp_path)
    for content, message in {"{": "is not valid JSON", "[1]": "a list, not a JSON object"}.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
            load_config(tmp_path)
