"""Ours alone updating a model of Qwen2.5-VL-3B's shape in bfloat16: responses a second, and model FLOPs utilisation."""

from __future__ import annotations

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import measure, shape
from benchmarks.large import large_model, random_array
from benchmarks.measure import Case
from benchmarks.train_work import Work, make_batch, make_config
from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.grpo.work import gradient_passes, needed_work
from perception_r1_jax.models import BACKENDS
from perception_r1_jax.records import TrainBatch
from perception_r1_jax.speeds import SPEEDS
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state

LOG_PROB_CHUNK = 1024
"""Positions of a row whose logits are made at a time."""


def large(folder: Path, quick: bool) -> list[Case]:
    """8 groups of 8 responses of 512 tokens, by each attention that the device has.

    On a CPU nothing, or with `quick` a tiny shape. Float32 parameters and gradients and bfloat16 moments of 3B are 45
    GB; layers keep their products (`remat="dots"`), which is as much again as 80 GB have room for.
    """
    if (model := large_model(folder, quick, "Qwen2.5-VL-3B-Instruct", shape.STANDARD)) is None:
        return []
    work, rounds = (Work(2, 2, 8, 90), 1) if quick else (Work(8, 8, 512, 900), 3)
    batch = make_batch(model.processor, work)
    platform = model.mesh.devices.flat[0].platform
    there = [name for name, platforms in BACKENDS.items() if platform in platforms]
    return [case for name in there for case in _time(model, batch, _make_config(work, name), rounds)]


def _make_config(work: Work, attention: str) -> ConfigDict:
    config = make_config(work)
    config.model.dtype, config.model.remat, config.model.attention = "bfloat16", "dots", attention
    config.optimizer.moments_dtype = "bfloat16"
    config.grpo.log_prob_chunk = min(config.grpo.log_prob_chunk, LOG_PROB_CHUNK)
    return config


def _time(model: shape.Model, batch: TrainBatch, config: ConfigDict, rounds: int) -> list[Case]:
    gc.collect()  # the state of the case before
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = TrainStep(model.config, config, model.mesh, optimizer)
    abstract = abstract_state(model.config, optimizer, model.mesh)
    leaves, structure = jax.tree.flatten(abstract.params)
    params = [random_array(number, leaf.shape, jnp.float32, leaf.sharding) for number, leaf in enumerate(leaves)]
    state = init_state(jax.tree.unflatten(structure, params), optimizer, abstract)
    del params  # the first step donates them

    def update() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        if not np.isfinite(metrics["grad_norm"]):
            raise RuntimeError(f"the gradient's norm is {metrics['grad_norm']}: nothing was updated.")

    name, responses = config.model.attention, batch.advantages.size
    (seconds,) = measure.interleave({name: update}, rounds).values()
    rate = measure.throughput(f"large_{name}", "responses/s", responses, seconds)
    speed = SPEEDS.get(model.mesh.devices.flat[0].device_kind)
    if not speed:
        return [rate]
    flops = np.dot(needed_work(model.config, batch), gradient_passes(config))
    return [rate, measure.compare(f"mfu_{name}", "share", flops * rate.ours / responses / speed.flops)]
