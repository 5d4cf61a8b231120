"""Reading and writing safetensors directories, and what is said about damaged ones."""

from __future__ import annotations

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from perception_r1_jax.weights.safetensors_io import CheckpointError, stored_tensors, weight_files, write_shards


def _write(folder, arrays, max_shard_bytes):
    sizes = {name: array.nbytes for name, array in arrays.items()}
    write_shards(folder, sizes, iter(arrays.items()), max_shard_bytes)


@pytest.fixture
def arrays():
    return {name: np.full((4, 8), i, ml_dtypes.bfloat16) for i, name in enumerate("abcde")}  # 64 bytes each


def test_shards_hold_what_came_and_no_more_than_the_limit(tmp_path, arrays):
    _write(tmp_path, arrays, max_shard_bytes=130)
    assert [file.name for file in weight_files(tmp_path)] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    found = {tensor.name: tensor for tensor in stored_tensors(tmp_path)}
    assert list(found) == list("abcde")
    for name, array in arrays.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(found[name].read(), array)


def test_a_tensor_beyond_the_limit_has_a_shard_of_its_own(tmp_path, arrays):
    _write(tmp_path, arrays, max_shard_bytes=10)
    assert len(weight_files(tmp_path)) == 5


def test_the_index_lists_sizes_and_files(tmp_path, arrays):
    _write(tmp_path, arrays, max_shard_bytes=200)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 320}
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert index["weight_map"] == dict.fromkeys("abc", first) | dict.fromkeys("de", second)


def test_what_fits_into_one_file_has_no_index(tmp_path, arrays):
    _write(tmp_path, arrays, max_shard_bytes=1000)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert [tensor.name for tensor in stored_tensors(tmp_path)] == list("abcde")


def test_a_block_is_read(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    save_file({"x": array}, tmp_path / "model.safetensors")
    (tensor,) = stored_tensors(tmp_path)
    np.testing.assert_array_equal(tensor.read((slice(1, 3), slice(2, 4))), array[1:3, 2:4])


def _break_missing_shard(folder):
    (folder / "model-00002-of-00003.safetensors").unlink()


def _break_header(folder):
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(b"\xff" * 40)


def _break_truncated(folder):
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _break_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": ')


def _break_nothing_there(folder):
    for file in folder.iterdir():
        file.unlink()


def _break_both_kinds(folder):
    save_file({"a": np.zeros(3, np.float32)}, folder / "model.safetensors")


def _break_quantized(folder):
    save_file({"a": np.zeros(3, np.int8)}, folder / "model-00001-of-00003.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_break_missing_shard, "lists files that are not there: model-00002-of-00003.safetensors"),
        (_break_header, "model-00002-of-00003.safetensors is not a readable safetensors file"),
        (_break_truncated, "model-00002-of-00003.safetensors is not a readable safetensors file"),
        (_break_index, "is not an index of safetensors files"),
        (_break_nothing_there, "holds no weights"),
        (_break_both_kinds, "holds both model.safetensors and model.safetensors.index.json"),
        (_break_quantized, "a is stored as I8"),
    ],
)
def test_damage_is_named(tmp_path, arrays, damage, message):
    _write(tmp_path, arrays, max_shard_bytes=130)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        stored_tensors(tmp_path)
