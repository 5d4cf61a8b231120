"""AWQ checkpoints load as the floats they stand for, whoever packed them."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from perception_r1_jax.judge.on_mesh import load_judge
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.models import load_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import CheckpointError, convert_huggingface, export_huggingface, load_params
from perception_r1_jax.weights.awq import AwqTensor, dequantized
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.safetensors_io import PACKED_DTYPES, STORED_DTYPES, stored_tensors

GROUP = 16
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}


def pack(integers: np.ndarray) -> np.ndarray:
    """AutoAWQ's loop: from uint [rows, columns] to int32 [rows, columns / 8]."""
    packed = np.zeros((integers.shape[0], integers.shape[1] // 8), np.uint32)
    for word in range(packed.shape[1]):
        for place, column in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            packed[:, word] |= integers[:, 8 * word + column].astype(np.uint32) << (4 * place)
    return packed.view(np.int32)


def quantize(rng, outputs: int, inputs: int, group: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A random weight's three tensors, and the weight [out, in] that they stand for."""
    q = rng.integers(0, 16, (inputs, outputs))
    z = rng.integers(0, 16, (inputs // group, outputs))
    s = rng.uniform(0.005, 0.03, (inputs // group, outputs)).astype(np.float16)
    floats = np.empty((outputs, inputs), np.float32)
    for row in range(inputs):
        floats[:, row] = (q[row] - z[row // group]) * s[row // group].astype(np.float32)
    return {"qweight": pack(q), "qzeros": pack(z), "scales": s}, floats


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The same model twice: quantized, and as floats. A layer's `down_proj` is left unquantized in both."""
    root = tmp_path_factory.mktemp("awq")
    source = write_random_checkpoint(root / "source", "qwen2", {"num_hidden_layers": 2})
    rng = np.random.default_rng(0)
    packed, floats = {}, {}
    for tensor in stored_tensors(source):
        name, value = tensor.name, tensor.read()
        if "_proj.weight" in name and name != "model.layers.1.mlp.down_proj.weight":
            parts, floats[name] = quantize(rng, *value.shape, GROUP)
            packed |= {name.replace("weight", part): array for part, array in parts.items()}
        else:
            packed[name] = value.astype(np.float16)
            floats[name] = packed[name].astype(np.float32)
    for name, tensors in {"packed": packed, "floats": floats}.items():
        shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("*.safetensors*"))
        save_file(tensors, root / name / "model.safetensors")
    configure(root / "packed", AWQ)
    return root


def configure(folder, quantization: dict) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"quantization_config": quantization}))


def assert_same(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), one, other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_parameters_are_the_floats(folders, sizes, dtype):
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    packed, floats = (
        load_params(folders / name, load_config(folders / name), mesh, dtype) for name in ("packed", "floats")
    )
    assert_same(packed, floats)


def test_by_default_they_have_the_dtype_of_the_scales(folders):
    mesh = make_mesh(devices=jax.devices()[:1])
    params = load_params(folders / "packed", load_config(folders / "packed"), mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float16)}


def test_any_block_of_a_weight_can_be_read(folders):
    tensors = dequantized(stored_tensors(folders / "packed", STORED_DTYPES | PACKED_DTYPES), GROUP)
    weight = next(tensor for tensor in tensors if tensor.name == "model.layers.0.mlp.up_proj.weight")
    assert isinstance(weight, AwqTensor)
    whole = weight.read()
    assert whole.shape == weight.shape == (160, 64)
    for block in [(slice(3, 21), slice(5, 50)), (slice(8, 9),), (slice(150, None), slice(63, 64)), (slice(4, 4),)]:
        np.testing.assert_array_equal(weight.read(block), whole[block])


def test_one_group_for_all_inputs(tmp_path):
    parts, floats = quantize(np.random.default_rng(3), 16, 24, 24)
    save_file({f"a.{part}": array for part, array in parts.items()}, tmp_path / "model.safetensors")
    (weight,) = dequantized(stored_tensors(tmp_path, STORED_DTYPES | PACKED_DTYPES), -1)
    np.testing.assert_array_equal(weight.read(), floats)


def test_a_judge_in_8_bits_from_4(folders):
    """It says what the floats in 8 bits say."""
    settings = {"max_prompt_tokens": 1536, "max_new_tokens": 96, "batch_size": 2, "dtype": jnp.float32}
    mesh = make_mesh(devices=jax.devices()[:1])
    request = JudgeRequest(("AB = 5", "ABC is a triangle."), "AB is 5.")
    judges = [load_judge(folders / name, mesh, weights_int8=True, **settings) for name in ("packed", "floats")]
    (packed,), (floats,) = (judge.judge([request]) for judge in judges)
    assert packed == floats
    assert packed.status == "ok"


def test_converted_and_exported_it_is_a_checkpoint_of_floats(folders, tmp_path):
    convert_huggingface(folders / "packed", tmp_path / "jax", "float32")
    export_huggingface(tmp_path / "jax", tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    floats = {tensor.name: tensor.read() for tensor in stored_tensors(folders / "floats")}
    for tensor in stored_tensors(tmp_path / "back"):
        np.testing.assert_array_equal(tensor.read(), floats[tensor.name])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quant_method": "gptq"}, "quantized with quant_method 'gptq' are not read, only with 'awq'. Give the"),
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes'"),
        ({"bits": 8}, "with bits 8 are not read, only with 4"),
        ({"version": "gemv"}, "with version 'gemv' are not read, only with 'gemm'"),
        ({"zero_point": False}, "with zero_point False"),
        (
            {"group_size": 32},
            r"qzeros is \[10, 8\]; with groups of 32 inputs it should be \[5, 8\]. Correct group_size",
        ),
    ],
)
def test_other_quantizations_are_named(folders, tmp_path, changed, message):
    folder = shutil.copytree(folders / "packed", tmp_path / "other")
    configure(folder, AWQ | changed)
    with pytest.raises(CheckpointError, match=message):
        load_params(folder, load_config(folder), make_mesh(devices=jax.devices()[:1]))


def test_a_part_that_is_missing_is_named(folders, tmp_path):
    folder = shutil.copytree(folders / "packed", tmp_path / "other")
    tensors = {t.name: t.read() for t in stored_tensors(folder, STORED_DTYPES | PACKED_DTYPES)}
    del tensors["model.layers.0.mlp.up_proj.qzeros"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing: model.layers.0.mlp.up_proj.weight\n  2 unknown: .*qweight"):
        load_params(folder, load_config(folder), make_mesh(devices=jax.devices()[:1]))
