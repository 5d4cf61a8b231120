"""Ours alone on a judge of Qwen2.5-7B's shape, with random weights made on the device: in bfloat16, and in 8 bits."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh

from benchmarks import measure, shape
from benchmarks.judge_requests import ROWS, make_requests, ours
from benchmarks.measure import Case
from perception_r1_jax.inference import Engine
from perception_r1_jax.models import ModelConfig, abstract_params, load_config, logical_axes, serving_params
from perception_r1_jax.models.published import PUBLISHED
from perception_r1_jax.processing import Processor
from perception_r1_jax.sharding import make_mesh, tree_shardings

ON_A_CPU = """--only large: a model of 7 billion parameters takes minutes a request on a CPU, so nothing is timed here.
Run it where jax finds a GPU or TPU, or give --quick for a tiny shape."""


def large(folder: Path, quick: bool, count: int) -> list[Case]:
    """Requests per second by the dtype of the weights; on a CPU nothing, or with `quick` of a tiny shape."""
    if jax.default_backend() == "cpu" and not quick:
        print(ON_A_CPU, flush=True)
        return []
    directory = shape.write_checkpoint(folder, shape.LONG)  # for its tokenizer, and in quick runs its shape
    config = load_config(directory) if quick else PUBLISHED["Qwen2.5-7B-Instruct"]
    mesh = make_mesh(devices=jax.devices()[:1])
    model = shape.Model(directory, config, None, Processor.from_directory(directory), mesh)
    return [_time(model, int8, count, rounds=1 if quick else 3) for int8 in (False, True)]


def _time(model: shape.Model, int8: bool, count: int, rounds: int) -> Case:
    gc.collect()  # the weights of the engine before
    engine = Engine(model.config, None, model.mesh, dtype=jnp.bfloat16, weights_int8=int8)
    engine.read(lambda mesh, _: random_params(model.config, mesh))
    name, setup = f"large_{'int8' if int8 else 'bfloat16'}", make_requests(model, engine, count)
    seconds = measure.interleave({name: ours(setup)}, rounds, warm={name: ours(setup.first(ROWS))})
    return measure.throughput(name, "requests/s", count, seconds[name])


def random_params(config: ModelConfig, mesh: Mesh) -> Iterator[tuple[tuple[str | int, ...], jax.Array]]:
    """Parameters one after another, bfloat16, as `weights.stream_params` gives those of a file; vectors are ones."""
    shapes = jax.eval_shape(serving_params, abstract_params(config))
    shardings = traverse_util.flatten_dict(tree_shardings(mesh, logical_axes(config, serving=True), shapes))
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    for number, (path, leaf) in enumerate(traverse_util.flatten_dict(shapes).items()):
        matrix = leaf.ndim > 1
        x = (
            0.02 * draw(jax.random.key(number), leaf.shape, jnp.bfloat16)
            if matrix
            else jnp.ones(leaf.shape, jnp.bfloat16)
        )
        yield path, jax.device_put(x.astype(jnp.bfloat16), shardings[path])
