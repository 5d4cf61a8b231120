"""What to set where a program does not fit, with the bytes that each setting would free on a device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from perception_r1_jax.inference import Engine
from perception_r1_jax.plan.measure import ACTIVATIONS, Measured
from perception_r1_jax.plan.programs import CACHE, JUDGE, OPTIMIZER, device_bytes, shard_bytes
from perception_r1_jax.plan.run import PlannedRun, held_while_drawing
from perception_r1_jax.plan.serving import served_params

LEAST_CACHE = 4
"""Advice leaves a cache at least this part of what it has: with less, responses would wait for one another."""


class Setting(NamedTuple):
    """A setting, and about how many bytes of a device it frees for a program; 0 where only a plan can tell."""

    text: str
    frees: int


def advise(run: PlannedRun, measured: Measured) -> list[Setting]:
    """Settings that help a program that does not fit, those that free most first; all of them may be needed."""
    stage = measured.name.split("/")[0]
    found = _of_training(run, measured) if stage == "train" else _of_serving(run, measured, stage)
    return sorted([*found, *_of_state(run, measured), *_to_host(run, measured)], key=lambda setting: -setting.frees)


def _of_state(run: PlannedRun, measured: Measured) -> Iterator[Setting]:
    """What stays on the devices throughout."""
    devices, moments, judge = run.mesh.devices.size, _moments(run, measured), _judge_weights(run, measured)
    if run.mesh.shape["data"] > 1:
        held = device_bytes((run.state.params, run.state.opt_state))
        yield Setting("config.mesh.data=1 and config.mesh.fsdp=-1", held - held // run.mesh.shape["data"])
    if run.config.optimizer.name == "adamw" and not run.config.lora.modules and moments:
        yield Setting("config.optimizer.name=muon, with one moment for the layers' matrices", moments // 2)
    if run.config.optimizer.moments_dtype == "float32" and moments:
        yield Setting("config.optimizer.moments_dtype=bfloat16", moments // 2)
    if not run.config.lora.modules and moments:
        yield Setting("config.lora.modules=(...), adapters in place of the parameters", moments)
    if run.reference:
        text = "config.lora.modules=(...), whose base is the reference policy, or no KL term"
        yield Setting(text, device_bytes(run.reference))
    if judge and not run.config.judge.weights_int8:
        yield Setting("config.judge.weights_int8=True", judge // 2)
    if judge:
        yield Setting("a judge of half as many parameters (config.judge.path)", judge // 2)
        yield from _split(run.judging, "judge", measured)
    if measured.bytes[OPTIMIZER]:
        split = device_bytes((run.state.params, run.state.opt_state))
        yield Setting(f"twice as many devices ({2 * devices})", split // 2)


def _to_host(run: PlannedRun, measured: Measured) -> Iterator[Setting]:
    """What can lie in the host's memory meanwhile; the moments come to the device within the update."""
    moments, judge = _moments(run, measured), _judge_weights(run, measured)
    if moments and not run.config.optimizer.host_memory:
        updates = measured.name == "train/update"
        yield Setting("config.optimizer.host_memory=True", 0 if updates else moments)
    if judge and not measured.name.startswith("judge/"):
        yield Setting("config.judge.host_memory=True and config.judge.streaming=False", judge)


def _moments(run: PlannedRun, measured: Measured) -> int:
    """Bytes of the optimizer's state that are on the device, to which all of it comes for an update.

    Its counters stay there in any case.
    """
    if measured.name == "train/update":
        return shard_bytes(run.state.opt_state)
    return 0 if run.config.optimizer.host_memory else measured.bytes[OPTIMIZER]


def _judge_weights(run: PlannedRun, measured: Measured) -> int:
    """The judge's bytes that are on the device; where the host keeps them, its prefix still is."""
    away = run.config.judge.host_memory and not measured.name.startswith("judge/")
    return 0 if away else measured.bytes[JUDGE]


def _of_training(run: PlannedRun, measured: Measured) -> Iterator[Setting]:
    config, ways = run.config, run.mesh.shape["data"] * run.mesh.shape["fsdp"]
    kernel = {"tpu": "splash", "gpu": "cudnn"}.get(run.mesh.devices.flat[0].platform)
    if config.model.attention == "xla" and kernel:
        yield Setting(f"config.model.attention={kernel}, which holds no scores", 0)
    if config.model.remat != "full":
        yield Setting("config.model.remat=full", 0)
    rows, samples = config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples
    if rows > ways:
        frees = measured.bytes[ACTIVATIONS] * (rows - ways) // rows
        yield Setting(f"config.grpo.micro_batch_prompts={ways}, a row for each device, now {rows}", frees)
    if samples > 1:
        yield Setting(f"config.grpo.micro_batch_samples={samples // 2}, shorter rows", 0)
    chunk = config.grpo.log_prob_chunk
    logits = max(rows // ways, 1) * chunk * run.policy.vocab_size * 4
    if chunk > 1:
        yield Setting(f"config.grpo.log_prob_chunk={chunk // 2}", logits)
    if run.policy.vision and not config.model.freeze_vision and not config.lora.modules:
        gradient = device_bytes(run.state.params["vision"])
        share = gradient / device_bytes(run.state.params)  # of the moments, too
        yield Setting("config.model.freeze_vision=True", gradient + int(share * _moments(run, measured)))


def _of_serving(run: PlannedRun, measured: Measured, stage: str) -> Iterator[Setting]:
    cache = measured.bytes[CACHE]
    if stage == "judge":
        fewer = run.config.judge.batch_size // 2
        if fewer and cache:
            yield Setting(f"config.judge.batch_size={fewer}", 0)
        if run.config.judge.streaming:
            several = run.config.rollout.max_rounds > 1  # then the weights stay for the next draw
            gone = "cache is" if several else "weights and cache are"
            held = held_while_drawing(run)
            frees = device_bytes(held.get(CACHE) if several else held)
            yield Setting(f"config.judge.streaming=False: the rollout's {gone} gone by then", frees)
        return
    if cache:
        over = max(measured.total - measured.memory, 0)
        left = max(cache - over, cache // LEAST_CACHE)
        share = math.floor(1000 * left / measured.memory) / 1000
        same = (
            "" if run.config.rollout.cache_int8 else " (config.rollout.cache_int8=True halves what a token takes of it)"
        )
        yield Setting(f"config.rollout.cache_memory={share}{same}", cache - left)
    yield from _split(run.rollouts, "rollout", measured)


def _split(engine: Engine, section: str, measured: Measured) -> Iterator[Setting]:
    """The weights that serve over twice as many devices, where these and the key heads can be dealt out so."""
    ways = 2 * engine.mesh.shape["tensor"]
    if engine.mesh.devices.size % ways == 0 and engine.config.num_kv_heads % ways == 0:
        weights = device_bytes(served_params(engine))
        share = math.ceil(100 * weights / 2 / measured.memory) / 100
        yield Setting(f"config.{section}.weights_memory={share}: split over {ways} devices", weights // 2)
