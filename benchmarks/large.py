"""A model of a published shape with random weights made on the device, for what only a GPU or TPU can time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, Sharding

from benchmarks import shape
from perception_r1_jax.inference import Engine
from perception_r1_jax.models import ModelConfig, abstract_params, load_config, logical_axes, serving_params
from perception_r1_jax.models.published import PUBLISHED
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh, tree_shardings

ON_A_CPU = """--only large: a model of 7 billion parameters takes minutes a request on a CPU, so nothing is timed here.
Run it where jax finds a GPU or TPU, or give --quick for a tiny shape."""


def large_model(folder: Path, quick: bool, name: str, tiny: shape.Shape = shape.LONG) -> shape.Model | None:
    """A published model without parameters yet, or with `quick` the tiny one; None, with a word, on a CPU.

    Its tokenizer is the tiny one's.
    """
    if jax.default_backend() == "cpu" and not quick:
        print(ON_A_CPU, flush=True)
        return None
    directory = shape.write_checkpoint(folder, tiny)
    config = load_config(directory) if quick else PUBLISHED[name]
    mesh = make_mesh(devices=jax.devices()[:1])
    return shape.Model(directory, config, None, Processor.from_directory(directory), mesh)


def large_engine(model: shape.Model, *, weights_int8: bool = False) -> Engine:
    """Its engine with random weights, computing in bfloat16."""
    gc.collect()  # the weights of the engine before
    engine = Engine(model.config, None, model.mesh, dtype=jnp.bfloat16, weights_int8=weights_int8)
    engine.read(lambda mesh, _: random_params(model.config, mesh))
    return engine


def random_params(config: ModelConfig, mesh: Mesh) -> Iterator[tuple[tuple[str | int, ...], jax.Array]]:
    """Parameters one after another, bfloat16, as `weights.stream_params` gives those of a file; vectors are ones."""
    shapes = jax.eval_shape(serving_params, abstract_params(config))
    shardings = traverse_util.flatten_dict(tree_shardings(mesh, logical_axes(config, serving=True), shapes))
    for number, (path, leaf) in enumerate(traverse_util.flatten_dict(shapes).items()):
        yield path, random_array(number, leaf.shape, jnp.bfloat16, shardings[path])


def random_array(number: int, dims: tuple[int, ...], dtype: jnp.dtype, sharding: Sharding) -> jax.Array:
    """A parameter: normal, of standard deviation 0.02; a vector is of ones. `number` is the seed."""
    return jax.jit(_draw, static_argnums=(1, 2), out_shardings=sharding)(jax.random.key(number), dims, dtype)


def _draw(key, dims, dtype):
    if len(dims) < 2:
        return jnp.ones(dims, dtype)
    return jax.random.normal(key, dims, dtype) * jnp.asarray(0.02, dtype)
