"""The table of names: against the published weight lists, the published sizes, and itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from perception_r1_jax.models import abstract_params, load_config
from perception_r1_jax.weights.names import (
    TABLE,
    flatten,
    hf_tensors,
    nested_name,
    parameter_tensors,
    published_name,
)
from perception_r1_jax.weights.random_checkpoint import TEXT_CONFIG, VISION_TOKENS, VL_CONFIG

SMALL = VL_CONFIG | dict.fromkeys(VISION_TOKENS, 7) | {"vocab_size": 96}


@pytest.mark.parametrize("model", ["Qwen2.5-VL-7B-Instruct", "Qwen2.5-32B-Instruct"])
def test_names_are_exactly_the_published_ones(shared_data, model):
    folder = shared_data / "qwen_configs" / model
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = hf_tensors(load_config(folder))
    assert set(tensors) == set(index["weight_map"])
    bytes_in_bfloat16 = 2 * sum(math.prod(tensor.shape) for tensor in tensors.values())
    assert bytes_in_bfloat16 == index["metadata"]["total_size"]


# Of the published models, in parameters; a tied embedding counts once.
PUBLISHED_PARAMETERS = {
    "Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen2.5-14B-Instruct": 14_770_033_664,
    "Qwen2.5-32B-Instruct": 32_763_876_352,
    "Qwen2.5-72B-Instruct": 72_706_203_648,
}


def test_every_published_size_builds(shared_data):
    table = json.loads((shared_data / "qwen_configs" / "config_table.json").read_text())
    counts = {name: _count_parameters(entry) for name, entry in table.items()}
    assert counts == PUBLISHED_PARAMETERS


def _count_parameters(entry: dict) -> int:
    config = {**entry["text"], "model_type": "qwen2"}
    if entry["vision"]:
        rope = {"type": "mrope", "mrope_section": entry["mrope_section"]}
        config |= dict.fromkeys(VISION_TOKENS, 0)
        config |= {"model_type": "qwen2_5_vl", "vision_config": entry["vision"], "rope_scaling": rope}
    model = load_config(config)
    ours = sum(math.prod(leaf.shape) for leaf in flatten(abstract_params(model)).values())
    assert ours == sum(math.prod(tensor.shape) for tensor in hf_tensors(model).values())
    return ours


def test_the_table_has_every_parameter_once_and_no_other():
    paths = [row.path for row in TABLE]
    assert len(set(paths)) == len(paths)
    assert set(flatten(abstract_params(load_config(SMALL)))) == set(paths)
    text = set(flatten(abstract_params(load_config(TEXT_CONFIG | {"vocab_size": 96}))))
    assert text == {path for path in paths if path.startswith("decoder/")}


@pytest.mark.parametrize(
    ("published", "nested"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3.mlp.up_proj.weight"),
        ("visual.blocks.0.norm1.weight", "model.visual.blocks.0.norm1.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_both_layouts_of_names(published, nested):
    assert nested_name(published) == nested
    assert published_name(nested) == published_name(published) == published


def _tensor(path: str):
    return parameter_tensors(load_config(SMALL))[path][0]


def test_a_query_kernel_is_the_transposed_matrix_with_heads_apart():
    tensor = _tensor("decoder/layers/attention/q/kernel")
    assert (tensor.shape, tensor.parameter_shape) == ((64, 64), (64, 4, 16))
    stored = np.arange(64 * 64).reshape(64, 64)
    kernel = tensor.to_parameter(stored, (slice(None),) * 3)
    assert kernel[5, 2, 3] == stored[2 * 16 + 3, 5]  # [in, head, of the head] <- [head * 16 + of the head, in]


def test_an_output_kernel_has_its_heads_in_front():
    tensor = _tensor("decoder/layers/attention/o/kernel")
    stored = np.arange(64 * 64).reshape(64, 64)
    assert tensor.to_parameter(stored, (slice(None),) * 3)[2, 3, 5] == stored[5, 2 * 16 + 3]


def test_a_patch_kernel_is_the_flattened_convolution():
    tensor = _tensor("vision/patch_embed/kernel")
    assert (tensor.shape, tensor.parameter_shape) == ((32, 3, 2, 14, 14), (1176, 32))
    stored = np.arange(32 * 1176).reshape(tensor.shape)
    kernel = tensor.to_parameter(stored, (slice(None),) * 2)
    channel, frame, row, column = 2, 1, 13, 4
    assert kernel[((channel * 2 + frame) * 14 + row) * 14 + column, 9] == stored[9, channel, frame, row, column]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.path)
def test_there_and_back_and_any_part(row):
    tensor = _tensor(row.path)
    stored = np.random.default_rng(0).standard_normal(tensor.shape)
    whole = tensor.to_parameter(stored, (slice(None),) * len(tensor.parameter_shape))
    assert whole.shape == tensor.parameter_shape
    np.testing.assert_array_equal(tensor.to_stored(whole), stored)
    for axis, size in enumerate(tensor.parameter_shape):  # a part of one axis, as a device of a mesh holds it
        index = [slice(None)] * len(tensor.parameter_shape)
        index[axis] = slice(size // 2, size)
        part = tensor.to_parameter(stored[tensor.stored_slices(index)], index)
        np.testing.assert_array_equal(part, whole[tuple(index)])
