"""Reading and writing directories of safetensors: one file, or shards with an index.

A tensor is read a block at a time and its file closed again, so that neither arrays nor mapped pages pile up.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from perception_r1_jax.errors import UserError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED_DTYPES = {"BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16), "F32": np.dtype(np.float32)}


PACKED_DTYPES = {"I32": np.dtype(np.int32)}
"""Of words that hold several integers, in quantized checkpoints."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read as the model it should be; the message names every cause."""


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, not read yet."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, block: Sequence[slice] = (slice(None),)) -> np.ndarray:
        """Reads a block of the tensor; axes beyond the given slices are read whole."""
        with safetensors.safe_open(self.file, framework="numpy") as file:
            return file.get_slice(self.name)[tuple(block)]


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a directory, as its index lists them.

    Raises:
        CheckpointError: no weights, weights twice, an unreadable index, or a listed file that is not there.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file() and index.is_file():
        raise CheckpointError(f"{directory} holds both {SINGLE_FILE} and {INDEX_FILE}. Remove the one that is stale.")
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(f"{directory} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there.")
    files = [directory / name for name in _read_index(index)]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise CheckpointError(f"{index} lists files that are not there: {', '.join(absent)}. Download them again.")
    return files


def _read_index(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}.") from error


def stored_tensors(directory: Path, dtypes: Mapping[str, np.dtype] = STORED_DTYPES) -> list[StoredTensor]:
    """All tensors in a directory's weight files. A name that two files hold is there twice.

    Args:
        directory: with safetensors files.
        dtypes: that are read, by their name in the files.

    Raises:
        CheckpointError: as `weight_files`, or a file whose header is damaged.
    """
    return [tensor for file in weight_files(directory) for tensor in _tensors_of(file, dtypes)]


def _tensors_of(path: Path, dtypes: Mapping[str, np.dtype]) -> Iterator[StoredTensor]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                view = file.get_slice(name)
                yield StoredTensor(name, path, tuple(view.get_shape()), _dtype(path, name, view.get_dtype(), dtypes))
    except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}). Download it again.") from error


def _dtype(path: Path, name: str, stored: str, dtypes: Mapping[str, np.dtype]) -> np.dtype:
    if stored not in dtypes:
        raise CheckpointError(
            f"{path}: {name} is stored as {stored}, which is not read; only {', '.join(dtypes)} are. "
            "Give the checkpoint before quantization."
        )
    return dtypes[stored]


def write_shards(
    directory: Path, sizes: Mapping[str, int], tensors: Iterable[tuple[str, np.ndarray]], max_shard_bytes: int
) -> None:
    """Writes tensors as they come into numbered shards with an index, or into a single file where they fit into one.

    Args:
        directory: must exist.
        sizes: bytes of each tensor, in the order in which they will come.
        tensors: (name, array) in that order; at most one shard of them is held at a time.
        max_shard_bytes: a shard is closed before it would grow beyond this; a larger tensor has its own.
    """
    shards = _plan_shards(sizes, max_shard_bytes)
    weight_map = {}
    stream = iter(tensors)
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SINGLE_FILE
        held = dict(next(stream) for _ in names)
        safetensors.numpy.save_file(held, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)  # save_file lets only the owner read
        weight_map |= dict.fromkeys(held, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _plan_shards(sizes: Mapping[str, int], max_shard_bytes: int) -> list[list[str]]:
    shards, used = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and used + size > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards
