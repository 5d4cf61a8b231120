"""Rollouts beside transformers + torch `generate` on the same random checkpoint, and beside a static batch.

    python benchmarks/rollout.py [--quick] [--only WORKLOAD] --json OUT

Both sides start from the same prompts, pictures already cut into patches, draw at temperature 1 in float32, and every
response has its full length: ids that end one are not drawn. Where VLLM_PYTHON names the Python of an environment with
vLLM's CPU build, its cases are added. Where there is a GPU or TPU, `large` is ours alone on a model of Qwen2.5-VL-7B's
shape, in bfloat16.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import numpy as np

from benchmarks import measure, rollout_large, shape, vllm_peer, workload
from benchmarks.measure import Case
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.models import token_bytes
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Prompt, PromptBatch
from perception_r1_jax.training.run_record import peak_rss_bytes

KEY = jax.random.key(0)
MIB = 2**20


def group(folder: Path, quick: bool) -> list[Case]:
    """Responses per second of groups that share a picture and a prompt, and what they cost in memory."""
    count, samples, new_tokens, side = (2, 8, 4, 90) if quick else (8, 8, 128, 900)
    model = shape.load_model(folder, shape.STANDARD)
    prompts = workload.picture_prompts(model.processor, count, side)
    batch = workload.pack(model.processor, prompts)
    ours = our_side(model, batch, samples, new_tokens)
    stats = ours()
    memory = measure.compare("peak_memory", "MiB", peak_rss_bytes() / MIB)  # before the peer is there
    rounds = 1 if quick else 3
    vllm = beside_vllm(model, prompts, samples, new_tokens, ours, rounds)  # first: an environment may be broken
    peer = load_peer(model)
    sides = {"ours": ours}
    if peer:
        inputs = peer.inputs(prompts)
        copies = peer.inputs([prompt for prompt in prompts for _ in range(samples)])
        sides |= {
            "group": lambda: peer.generate(inputs, samples, new_tokens),
            "picture_per_sample": lambda: peer.generate(copies, 1, new_tokens),
            "shared_by_hand": lambda: peer.generate_shared(inputs, samples, new_tokens),
        }
    seconds = measure.interleave(sides, rounds)
    responses = functools.partial(measure.throughput, unit="responses/s", work=count * samples)
    speed = [responses(name, ours=seconds["ours"], peer=seconds[name]) for name in sides if name != "ours"]
    speed = speed or [responses("group", ours=seconds["ours"])]
    if vllm:
        speed.append(responses("vllm_many", **vllm))
    naive = batch.tokens.size * samples * token_bytes(model.config, np.float32)  # each response with its prompt
    kept = measure.compare("prompt_bytes", "MiB", stats.prompt_bytes / MIB, naive / MIB, less_is_better=True)
    return [*speed, kept, memory]


def plain(folder: Path, quick: bool) -> list[Case]:
    """Tokens per second of short prompts of unlike lengths, a response each."""
    count, new_tokens = (4, 4) if quick else (32, 128)
    model = shape.load_model(folder, shape.STANDARD)
    prompts = workload.text_prompts(model.processor, np.linspace(8, 64, count, dtype=int))
    ours, rounds = our_side(model, workload.pack(model.processor, prompts), 1, new_tokens), 1 if quick else 5
    vllm = beside_vllm(model, prompts, 1, new_tokens, ours, rounds)
    sides = {"ours": ours}
    if peer := load_peer(model):
        inputs = peer.inputs(prompts)
        sides["peer"] = lambda: peer.generate(inputs, 1, new_tokens)
    seconds = measure.interleave(sides, rounds)
    tokens = functools.partial(measure.throughput, unit="tokens/s", work=count * new_tokens)
    speed = [tokens("plain", ours=seconds["ours"], peer=seconds.get("peer"))]
    if vllm:
        speed.append(tokens("vllm_decode", **vllm))
    return speed


def long_tail(folder: Path, quick: bool) -> list[Case]:
    """Tokens per second of responses of very unlike lengths, beside the same engine with a static batch."""
    count, samples, slots = (4, 4, 8) if quick else (32, 8, 32)
    median, percentile_95, cap = (6, 30, 64) if quick else (300, 1500, 4096)
    model = shape.load_model(folder, shape.LONG)
    lengths = workload.log_normal_lengths(count * samples, median, percentile_95, cap).reshape(count, samples)
    prompts = workload.text_prompts(model.processor, np.linspace(8, 64, count, dtype=int))
    batch = workload.pack(model.processor, prompts)
    engine = Engine(model.config, model.params, model.mesh, slots=slots)
    sampling = endless(model.processor, cap)
    at_once = slots // samples
    used = {}

    def ours() -> None:
        out = engine.generate(batch, samples, sampling, KEY, limits=lengths)
        _check(out.mask.sum(-1), lengths)
        used["ours"] = out.stats.utilisation

    def static() -> None:
        """So many prompts at once as fill the slots; no slot is free before all responses are done."""
        steps = 0
        for start in range(0, count, at_once):
            rows = slice(start, start + at_once)
            longest = np.full_like(lengths[rows], lengths[rows].max())
            out = engine.generate(rows_of(batch, rows), samples, sampling, KEY, limits=longest)
            _check(out.mask.sum(-1), longest)
            steps += longest.max()
        used["static"] = lengths.sum() / (steps * slots)

    def compile_for(count: int) -> None:
        """So many prompts with responses of one token: the shapes of a run, which takes minutes."""
        engine.generate(rows_of(batch, slice(count)), samples, sampling, KEY, limits=np.ones_like(lengths[:count]))

    warm = {"ours": lambda: compile_for(count), "static": lambda: compile_for(at_once)}
    seconds = measure.interleave({"ours": ours, "static": static}, rounds=1, warm=warm)
    return [
        measure.throughput("long_tail", "tokens/s", int(lengths.sum()), seconds["ours"], seconds["static"]),
        measure.compare("slot_utilisation", "share", float(used["ours"]), float(used["static"])),
    ]


def endless(processor: Processor, new_tokens: int) -> Sampling:
    """Drawing at temperature 1, up to the limit: what would end a response is banned."""
    banned = processor.banned_ids + processor.stop_ids
    return Sampling(new_tokens, processor.stop_ids, processor.pad_id, banned_ids=banned)


def our_side(model: shape.Model, batch: PromptBatch, samples: int, new_tokens: int) -> Callable[[], GenerationStats]:
    """A run of ours: `samples` responses of `new_tokens` tokens to each prompt."""
    engine, sampling = Engine(model.config, model.params, model.mesh), endless(model.processor, new_tokens)

    def run() -> GenerationStats:
        out = engine.generate(batch, samples, sampling, KEY)
        _check(out.mask.sum(-1), new_tokens)
        return out.stats

    return run


def load_peer(model: shape.Model) -> Any:
    """The peer on the model's checkpoint; None where torch is not installed, or ours does not run on a CPU."""
    if not measure.has_peer(importlib.util.find_spec("torch") is not None):
        return None
    from benchmarks.peer import Peer

    return Peer(model.directory, model.processor)


def beside_vllm(
    model: shape.Model, prompts: list[Prompt], samples: int, new_tokens: int, ours: Callable[[], object], rounds: int
) -> dict[str, list[float]]:
    """Seconds of ours and of the peer vLLM.

    Nothing where `vllm_peer.VARIABLE` names no Python that has it, or ours does not run on a CPU.
    """
    if not measure.has_peer(vllm_peer.VARIABLE in os.environ):
        return {}
    length = max(len(prompt.tokens) for prompt in prompts) + new_tokens
    with vllm_peer.VllmPeer(model.directory, model.processor, length) as vllm:
        sides = {"ours": ours, "peer": vllm.side(prompts, samples, new_tokens)}
        return measure.interleave(sides, rounds)


def rows_of(batch: PromptBatch, rows: slice) -> PromptBatch:
    """Some of the prompts, in the same bucket."""
    return jax.tree.map(lambda x: x[rows], batch)


def _check(made: np.ndarray, asked: np.ndarray | int) -> None:
    """Both sides must do the same work: no response may be shorter than asked for."""
    if not (made == asked).all():
        raise RuntimeError(f"responses have {made.tolist()} tokens, not {np.asarray(asked).tolist()}.")


WORKLOADS: Mapping[str, measure.Workload] = {
    "group": group,
    "plain": plain,
    "long_tail": long_tail,
    "large": rollout_large.large,
}

if __name__ == "__main__":
    measure.run(WORKLOADS, __doc__)
