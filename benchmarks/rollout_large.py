"""Ours alone decoding a model of Qwen2.5-VL-7B's shape: tokens per second, and the share of the memory's bandwidth.

What bounds decoding is what every step must read: all weights once, and the keys and values of every sequence, those of
a prompt once for all of its samples.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, workload
from benchmarks.large import large_engine, large_model
from benchmarks.measure import Case
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import token_bytes

PASSES = 20
"""Copies in one program, so that starting it does not count."""


def large(folder: Path, quick: bool) -> list[Case]:
    """32 prompts x 8 samples x 256 tokens; on a CPU nothing, or with `quick` of a tiny shape."""
    if (model := large_model(folder, quick, "Qwen2.5-VL-7B-Instruct")) is None:
        return []
    count, samples, prompt_tokens, new_tokens, rounds = (2, 2, 64, 8, 1) if quick else (32, 8, 512, 256, 3)
    batch = workload.pack(model.processor, workload.text_prompts(model.processor, [prompt_tokens] * count))
    banned = model.processor.banned_ids + model.processor.stop_ids
    sampling = Sampling(new_tokens, model.processor.stop_ids, model.processor.pad_id, banned_ids=banned)
    engine, runs = large_engine(model), []
    _check_in_step(engine.plan(*batch.tokens.shape, samples, sampling).slots, count * samples)

    def ours() -> None:
        runs.append(engine.generate(batch, samples, sampling, jax.random.key(0)).stats)

    seconds = measure.interleave({"large": ours}, rounds)
    copied = copy_bandwidth(2**24 if quick else 2**31)
    moved = step_bytes(engine, count * prompt_tokens, count * samples * new_tokens // 2)
    per_step = statistics.median(stats.decode / (stats.steps / (count * samples)) for stats in runs[1:])
    return [
        measure.throughput("large", "tokens/s", count * samples * new_tokens, seconds["large"]),
        measure.compare("copy_bandwidth", "GB/s", copied / 1e9),
        measure.compare("bandwidth_share", "share", moved / per_step / copied),
    ]


def step_bytes(engine: Engine, prompt_tokens: int, response_tokens: int) -> int:
    """What a decoding step must read with so many tokens in the cache: all weights but what is only looked up."""
    config, weights = engine.config, engine.serving.bytes
    looked_up = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size * engine.serving.dtype.itemsize
    vision = engine.serving.shapes.get("vision", {})
    unused = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(vision))
    return weights - looked_up - unused + (prompt_tokens + response_tokens) * token_bytes(config, engine.cache_dtype)


def copy_bandwidth(size: int) -> float:
    """Bytes per second of copying `size` bytes on the first device: those read and those written."""
    advance = jax.jit(lambda x: jax.lax.fori_loop(0, PASSES, lambda _, x: x + 1, x), donate_argnums=0)
    x = jax.block_until_ready(advance(jnp.zeros(size // 4, jnp.int32)))
    started = time.perf_counter()
    x = jax.block_until_ready(advance(x))
    seconds = time.perf_counter() - started
    assert np.asarray(x[0]) == 2 * PASSES
    return PASSES * 2 * size / seconds


def _check_in_step(slots: int, sequences: int) -> None:
    """None may wait, or a step reads less than is counted; none ends early, as stop tokens are banned."""
    if slots < sequences:
        raise RuntimeError(
            f"the cache has room for {slots} sequences of {sequences}, so the share of the bandwidth cannot be told; "
            "it takes a device with more memory."
        )
