"""Hugging Face directories to converted checkpoints and back. Nothing needs an accelerator."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import write_json
from perception_r1_jax.models import ModelConfig, load_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights.load import PARAMS, load_parameter, load_params, locate_model, stored_params
from perception_r1_jax.weights.names import flatten, parameter_tensors
from perception_r1_jax.weights.safetensors_io import CheckpointError, write_shards
from perception_r1_jax.weights.side_files import (
    CONFIG_FILE,
    copy_side_files,
    publish_preprocessor,
    published_config,
)

MAX_SHARD_BYTES = 5 * 10**9
CHUNK_BYTES = 64 * 2**20
"""A device that restores its part of a parameter reads whole chunks."""

STORAGE_ERRORS = (OSError, ValueError, safetensors.SafetensorError)
"""What orbax and safetensors raise where a disk is full."""

REASON = 300
"""Characters of the storage layer's reason that a message gives."""


def convert_huggingface(source: str | Path, out: str | Path, dtype: Any = None) -> None:
    """Writes a converted checkpoint: the side files at its root and the parameters, by orbax, in `params/`.

    Args:
        source: Hugging Face directory.
        out: new or empty directory.
        dtype: of the parameters; None keeps what is stored.

    Raises:
        FileNotFoundError: no `config.json`.
        ValueError: another architecture, weights that are not the model's, or `out` is taken.
    """
    source, out = Path(source), Path(out).resolve()
    check_free(out)
    config = load_config(source)
    if locate_model(source).kind != "huggingface":
        raise CheckpointError(f"{source} is a converted checkpoint already.")
    params = load_params(source, config, make_mesh(1, 1, 1, devices=[_cpu()]), dtype)
    with _empty_if_failed(out), _lean_context(params):
        shutil.copyfile(source / CONFIG_FILE, out / CONFIG_FILE)
        copy_side_files(source, out)
        ocp.save(out / PARAMS, params, checkpointable_name=PARAMS)


def export_huggingface(
    checkpoint: str | Path, out: str | Path, dtype: Any = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes a Hugging Face directory in the published layout, a parameter at a time.

    Args:
        checkpoint: converted checkpoint, training run's working directory, or one step of it.
        out: new or empty directory.
        dtype: of the weights; None keeps what is stored.
        max_shard_bytes: of one safetensors file.

    Raises:
        ValueError: no checkpoint there, not the model of its config, or `out` is taken.
    """
    out = Path(out)
    check_free(out)
    source = locate_model(checkpoint)
    if source.kind == "huggingface":
        raise CheckpointError(f"{checkpoint} is a Hugging Face directory already.")
    config = load_config(source.model_dir)
    stored = flatten(stored_params(source.weights, config))
    dtypes = {path: np.dtype(dtype or leaf.dtype) for path, leaf in stored.items()}
    sizes = _tensor_bytes(config, dtypes)
    content = json.loads((source.model_dir / CONFIG_FILE).read_text())
    with _empty_if_failed(out):
        write_shards(out, sizes, _stored_tensors(source.weights, config, stored, dtypes), max_shard_bytes)
        copy_side_files(source.model_dir, out)
        publish_preprocessor(out)
        write_json(out / CONFIG_FILE, published_config(content, dtypes["decoder/embed/embedding"].name))


def check_free(out: Path) -> None:
    """Raises `CheckpointError` where `out` is anything but absent or an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise CheckpointError(f"{out} is taken: choose a new or empty directory to write to.")


@contextlib.contextmanager
def _empty_if_failed(out: Path) -> Iterator[None]:
    """Makes a folder to write to. What fails leaves it as empty as it was, free for the next attempt.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for path in out.iterdir() if out.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if isinstance(error, UserError) or not isinstance(error, STORAGE_ERRORS):
            raise
        reason = textwrap.shorten(str(error), REASON)
        raise CheckpointError(f"{out} could not be written: {reason}. Free space or choose another folder.") from error


def _tensor_bytes(config: ModelConfig, dtypes: Mapping[str, np.dtype]) -> dict[str, int]:
    return {
        tensor.name: math.prod(tensor.shape) * dtypes[path].itemsize
        for path, tensors in parameter_tensors(config).items()
        for tensor in tensors
    }


def _stored_tensors(
    weights: Path, config: ModelConfig, stored: Mapping[str, Any], dtypes: Mapping[str, np.dtype]
) -> Iterator[tuple[str, np.ndarray]]:
    for path, tensors in parameter_tensors(config).items():
        target = jax.ShapeDtypeStruct(stored[path].shape, dtypes[path], sharding=SingleDeviceSharding(_cpu()))
        parameter = np.asarray(load_parameter(weights, config, path, target))
        for tensor in tensors:
            yield tensor.name, tensor.to_stored(parameter if tensor.layer is None else parameter[tensor.layer])
        del parameter  # before the next one is read


def _lean_context(params: Any) -> ocp.Context:
    """A parameter or two beside the model in host memory; orbax would copy all, and hold what it has compressed."""
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.array.saving.use_compression = False
    context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
    largest = max(leaf.nbytes for leaf in jax.tree.leaves(params))
    context.memory.write_concurrent_bytes = largest + 1  # the limit is exclusive
    return context


def _cpu() -> jax.Device:
    return jax.local_devices(backend="cpu")[0]
