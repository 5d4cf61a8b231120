"""Parameters onto a mesh from any directory that holds a model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tensorstore
from flax import traverse_util
from jax.sharding import Sharding
from orbax.checkpoint import v1 as ocp

from perception_r1_jax.models import ModelConfig, abstract_params, logical_axes, serving_params
from perception_r1_jax.sharding import tree_shardings
from perception_r1_jax.weights.coverage import check_coverage
from perception_r1_jax.weights.huggingface import load_huggingface, stream_huggingface
from perception_r1_jax.weights.names import ServingPath, flatten, unflatten
from perception_r1_jax.weights.safetensors_io import INDEX_FILE, SINGLE_FILE, CheckpointError, weight_files
from perception_r1_jax.weights.side_files import CONFIG_FILE

PARAMS = "params"
CHECKPOINTS, MODEL = "checkpoints", "model"


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A directory that holds a model, of whichever kind.

    Attributes:
        kind: "huggingface", or "orbax" for a converted checkpoint or a step of a training run.
        weights: directory of the safetensors files, or the orbax checkpoint that holds "params".
        model_dir: directory of `config.json`, tokenizer and the other side files.
    """

    kind: Literal["huggingface", "orbax"]
    weights: Path
    model_dir: Path


def locate_model(directory: str | Path) -> ModelSource:
    """Says what kind of model directory this is.

    Raises:
        CheckpointError: none that is understood, or one with a part missing.
    """
    directory = Path(directory).resolve()
    source = _recognise(directory)
    if source is None:
        raise CheckpointError(_why_no_model(directory))
    if not (source.model_dir / CONFIG_FILE).is_file():
        raise CheckpointError(f"{source.model_dir / CONFIG_FILE} is missing: copy it from where the weights come from.")
    return source


def model_files(directory: str | Path) -> list[Path]:
    """The files that a model consists of: its config and its weights. Errors as of `locate_model`."""
    source = locate_model(directory)
    if source.kind == "huggingface":
        weights = weight_files(source.weights)
    else:
        weights = sorted(path for path in (source.weights / PARAMS).rglob("*") if path.is_file())
    return [source.model_dir / CONFIG_FILE, *weights]


def _recognise(directory: Path) -> ModelSource | None:
    if (directory / SINGLE_FILE).is_file() or (directory / INDEX_FILE).is_file():
        return ModelSource("huggingface", directory, directory)
    if (directory / CHECKPOINTS).is_dir():
        return ModelSource("orbax", _latest_step(directory / CHECKPOINTS), directory / MODEL)
    if directory.parent.name == CHECKPOINTS and (directory / PARAMS).is_dir():
        return ModelSource("orbax", directory, directory.parent.parent / MODEL)
    if (directory / PARAMS).is_dir():
        return ModelSource("orbax", directory / PARAMS, directory)
    return None


def _why_no_model(directory: Path) -> str:
    if not directory.is_dir():
        return f"{directory} is not a directory. Give one that holds a model."
    return (
        f"{directory} holds no model: neither {SINGLE_FILE} or {INDEX_FILE} (Hugging Face), "
        f"nor {PARAMS}/ (converted checkpoint), nor {CHECKPOINTS}/ (training run)."
    )


def _latest_step(checkpoints: Path) -> Path:
    steps = [path for path in checkpoints.iterdir() if path.name.isdigit()]  # unfinished ones have a longer name
    if not steps:
        raise CheckpointError(f"{checkpoints} holds no finished checkpoint yet. Train until the first is saved.")
    return max(steps, key=lambda path: int(path.name))


def load_params(directory: str | Path, config: ModelConfig, mesh: jax.sharding.Mesh, dtype: Any = None) -> Any:
    """Loads a model's parameters, sharded over the mesh by `sharding.RULES`.

    Args:
        directory: any kind of model directory (`locate_model`).
        config: of the model, from the same directory.
        mesh: any; it need not be the one that a checkpoint was saved from.
        dtype: of the parameters; None keeps what is stored.

    Returns:
        The parameter tree. Of a training run's checkpoint only this part is read.

    Raises:
        CheckpointError: no model there, a damaged one, or not the one that `config` describes.
    """
    source = locate_model(directory)
    dtype = None if dtype is None else np.dtype(dtype)
    shardings = tree_shardings(mesh, logical_axes(config), abstract_params(config))
    if source.kind == "huggingface":
        return load_huggingface(source.weights, config, shardings, dtype)
    stored = stored_params(source.weights, config)
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=sharding),
        stored,
        shardings,
    )
    return load_stored(source.weights, target)


def stream_params(
    directory: str | Path, config: ModelConfig, mesh: jax.sharding.Mesh, dtype: Any = None
) -> Iterator[tuple[ServingPath, jax.Array]]:
    """The parameters one after another, in the layout of `models.serving_params`: each of the decoder's layers apart.

    So a model that serves need not be held twice. Beside what is kept of them, the devices hold one parameter more at
    a time; of a converted checkpoint, which has the layers stacked, one of all layers.

    Args and errors as of `load_params`.
    """
    source = locate_model(directory)
    dtype = None if dtype is None else np.dtype(dtype)
    shapes = jax.eval_shape(serving_params, abstract_params(config))
    axes = logical_axes(config, serving=True)
    shardings = traverse_util.flatten_dict(tree_shardings(mesh, axes, shapes))
    if source.kind == "huggingface":
        yield from stream_huggingface(source.weights, config, shardings, dtype)
        return
    stacked = flatten(tree_shardings(mesh, logical_axes(config), abstract_params(config)))
    for path, leaf in flatten(stored_params(source.weights, config)).items():
        target = jax.ShapeDtypeStruct(leaf.shape, dtype or leaf.dtype, sharding=stacked[path])
        yield from _taken_apart(path, load_parameter(source.weights, config, path, target), shardings)


def _taken_apart(
    path: str, parameter: jax.Array, shardings: Mapping[ServingPath, Sharding]
) -> Iterator[tuple[ServingPath, jax.Array]]:
    parts = tuple(path.split("/"))
    if parts[:2] != ("decoder", "layers"):
        yield parts, parameter
        return
    for layer in range(len(parameter)):
        place = (*parts[:2], layer, *parts[2:])
        yield place, jax.device_put(parameter[layer], shardings[place])


def load_parameter(weights: Path, config: ModelConfig, path: str, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads a single parameter of an orbax checkpoint, as `target` says. Errors as of `load_stored`."""
    targets = dict.fromkeys(flatten(abstract_params(config)), ocp.PLACEHOLDER) | {path: target}
    return flatten(load_stored(weights, unflatten(targets)))[path]


def stored_params(weights: Path, config: ModelConfig) -> Any:
    """Shapes and dtypes of the parameters in an orbax checkpoint, as a tree of ShapeDtypeStructs.

    Raises:
        CheckpointError: they cannot be read, or are not those of the model.
    """
    with _explained(weights):
        _check_index(weights / PARAMS)
        found = flatten(ocp.metadata(weights, checkpointable_name=PARAMS).metadata)
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(abstract_params(config)).items()}
    check_coverage(weights, shapes, [(path, tuple(leaf.shape)) for path, leaf in found.items()])
    return unflatten({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in found.items()})


def load_stored(weights: Path, target: Any) -> Any:
    """Reads parameters of an orbax checkpoint.

    Args:
        weights: the checkpoint.
        target: tree of ShapeDtypeStructs with shardings; `ocp.PLACEHOLDER` where nothing is read.

    Raises:
        CheckpointError: they cannot be read.
    """
    with _explained(weights):
        return ocp.load(weights, target, checkpointable_name=PARAMS)


def _check_index(arrays: Path) -> None:
    """Raises where the index of the arrays is damaged: orbax would print a traceback for each array."""
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{arrays}/"}}
    tensorstore.KvStore.open(store).result().list().result()


@contextlib.contextmanager
def _explained(weights: Path) -> Iterator[None]:
    """One sentence instead of what a damaged file makes orbax raise, which may be any exception."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):  # of the machine, not of the files
        raise
    except Exception as error:
        raise CheckpointError(
            f"{weights} cannot be read: files of the checkpoint are missing, damaged or not readable. "
            "Convert the model again, or choose another step of the training run."
        ) from error
