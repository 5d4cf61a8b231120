"""Hugging Face weights straight into sharded arrays, a block of one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from perception_r1_jax.models import ModelConfig
from perception_r1_jax.weights.awq import AwqTensor, dequantized, quantized_group
from perception_r1_jax.weights.coverage import check_coverage
from perception_r1_jax.weights.names import (
    EMBEDDING,
    HEAD,
    HfTensor,
    ServingPath,
    flatten,
    hf_tensors,
    parameter_tensors,
    published_name,
    serving_tensors,
    unflatten,
)
from perception_r1_jax.weights.safetensors_io import PACKED_DTYPES, STORED_DTYPES, StoredTensor, stored_tensors

COMPARED_ROWS = 1024


def load_huggingface(directory: Path, config: ModelConfig, shardings: Any, dtype: np.dtype | None) -> Any:
    """Reads the weights of a Hugging Face directory, published or nested layout, as floats or quantized by AWQ.

    Each device's part of each parameter is filled layer by layer from the files, so that beside the
    parameters themselves the host holds at most one more of them.

    Args:
        directory: with `model.safetensors`, or shards and their index.
        config: of the model, as read from the directory.
        shardings: tree of shardings of the parameters.
        dtype: of the parameters; None keeps what is stored.

    Returns:
        The parameter tree.

    Raises:
        CheckpointError: the files cannot be read or do not hold exactly the model's tensors.
    """
    stored = match_tensors(directory, config)
    places = flatten(shardings)
    return unflatten(
        {
            path: _load_parameter(tensors, stored, places[path], dtype, stacked=tensors[0].layer is not None)
            for path, tensors in parameter_tensors(config).items()
        }
    )


def stream_huggingface(
    directory: Path, config: ModelConfig, shardings: Mapping[ServingPath, Sharding], dtype: np.dtype | None
) -> Iterator[tuple[ServingPath, jax.Array]]:
    """As `load_huggingface`, but the parameters one after another and each of the decoder's layers apart."""
    stored = match_tensors(directory, config)
    for path, tensors in serving_tensors(config).items():
        stacked = path[0] == "vision" and tensors[0].layer is not None
        yield path, _load_parameter(tensors, stored, shardings[path], dtype, stacked=stacked)


def match_tensors(directory: Path, config: ModelConfig) -> Mapping[str, StoredTensor | AwqTensor]:
    """Every tensor of the model in the directory's files, by published name.

    A tied model's `lm_head.weight` may be there too, as some fine-tuned checkpoints have it, if it equals
    the embedding.

    Raises:
        CheckpointError: missing, unknown, doubled or wrongly shaped tensors, all of them in one message; or
            quantized in a way that is not read.
    """
    group = quantized_group(directory)
    if group is None:
        tensors = stored_tensors(directory)
    else:
        tensors = dequantized(stored_tensors(directory, STORED_DTYPES | PACKED_DTYPES), group)
    found = [(published_name(tensor.name), tensor) for tensor in tensors]
    by_name = dict(found)
    also = []
    if config.tie_embeddings and HEAD in by_name and EMBEDDING in by_name:
        found = [(name, tensor) for name, tensor in found if name != HEAD]
        if not _equal(by_name[HEAD], by_name[EMBEDDING]):
            also = [f"{HEAD} differs from {EMBEDDING}, though the config ties them (tie_word_embeddings)"]
    expected = {name: tensor.shape for name, tensor in hf_tensors(config).items()}
    check_coverage(directory, expected, [(name, tensor.shape) for name, tensor in found], also)
    return by_name


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    rows = one.shape[0]
    blocks = [slice(start, min(start + COMPARED_ROWS, rows)) for start in range(0, rows, COMPARED_ROWS)]
    return one.shape == other.shape and all(np.array_equal(one.read([b]), other.read([b])) for b in blocks)


def _common_dtype(stored: Sequence[StoredTensor | AwqTensor]) -> np.dtype:
    dtypes = {source.dtype for source in stored}
    return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)  # which holds the others exactly


def _load_parameter(
    tensors: Sequence[HfTensor],
    files: Mapping[str, StoredTensor | AwqTensor],
    sharding: Sharding,
    dtype: np.dtype | None,
    *,
    stacked: bool,
) -> jax.Array:
    shape, stored = tensors[0].parameter_shape, [files[tensor.name] for tensor in tensors]
    dtype = _common_dtype(stored) if dtype is None else dtype

    def read(index: tuple[slice, ...]) -> np.ndarray:
        layers = range(len(tensors))[index[0]] if stacked else range(1)
        inner = index[1:] if stacked else index
        block = np.empty((len(layers), *(len(range(n)[part]) for n, part in zip(shape, inner))), dtype)
        for target, layer in zip(block, layers):
            target[...] = tensors[layer].to_parameter(stored[layer].read(tensors[layer].stored_slices(inner)), inner)
        return block if stacked else block[0]

    return jax.make_array_from_callback((len(tensors), *shape) if stacked else shape, sharding, read)
