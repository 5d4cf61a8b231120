"""The GRPO update beside transformers + torch, which compute picture and prompt for every response.

    python benchmarks/train_step.py [--quick] [--only WORKLOAD] --json OUT

Both sides start from the same checkpoint, prompts and responses, in float32, with the same loss and AdamW. Ours takes a
group at a time. Before anything is timed their first gradients must have the same norm. "tuned" is the peer with the
settings that are best for it here: fused AdamW, and malloc keeping what is freed. Each side has a process of its own,
and memory is its peak.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from ml_collections import ConfigDict

from benchmarks import measure, shape, workload
from benchmarks.measure import Case
from benchmarks.side import Side
from perception_r1_jax.config import default_config
from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.records import TrainBatch
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state

TOLERANCE = 1e-3
"""Relative, between the norms of two gradients in float32."""


class Work(NamedTuple):
    """What is updated on: prompts, responses to each, tokens of a response, pixels of a picture's sides."""

    prompts: int
    samples: int
    new_tokens: int
    side: int


def group(folder: Path, quick: bool) -> list[Case]:
    """Responses per second of a group that shares a picture of some 1,000 tokens, and the memory of each side."""
    work = Work(1, 8, 8, 90) if quick else Work(1, 8, 128, 900)
    return beside_peers(folder, work, {"group": "peer", "tuned": "tuned"}, "peak_memory", 1 if quick else 3)


def single(folder: Path, quick: bool) -> list[Case]:
    """The same with one response to a prompt: nothing to share."""
    work = Work(2, 1, 8, 90) if quick else Work(4, 1, 128, 900)
    return beside_peers(folder, work, {"single": "peer", "alone_tuned": "tuned"}, "alone_memory", 1 if quick else 3)


def beside_peers(folder: Path, work: Work, names: Mapping[str, str], memory: str, rounds: int) -> list[Case]:
    """The cases of ours beside one side of the peer after the other, and its memory beside the lesser of the peer's.

    One after the other, since both of the peer's would not fit into memory beside each other.
    """
    speed, peaks = [], {}
    for name, other in names.items():
        with contextlib.ExitStack() as stack:
            sides = ("ours", other) if has_torch() else ("ours",)
            found = {side: stack.enter_context(Side(make_side, side, folder, work)) for side in sides}
            speed.append(time_sides(name, found, work, rounds))
            peaks |= {side: process.peak() for side, process in found.items()}
        if not has_torch():
            break
    ours = peaks.pop("ours")
    return [*speed, measure.compare(memory, "MiB", ours, min(peaks.values(), default=None), less_is_better=True)]


def time_sides(name: str, found: Mapping[str, Callable[[], float]], work: Work, rounds: int) -> Case:
    """The case of ours, and beside it of the other side if there is one."""
    norms = {side: update() for side, update in found.items()}
    if not all(math.isclose(norm, norms["ours"], rel_tol=TOLERANCE) for norm in norms.values()):
        raise RuntimeError(f"the sides do not make the same update: norms of their gradients are {norms}.")
    ours, *peer = measure.interleave(found, rounds).values()
    return measure.throughput(name, "responses/s", work.prompts * work.samples, ours, *peer)


def has_torch() -> bool:
    """Whether there is a peer."""
    return measure.has_peer(importlib.util.find_spec("torch") is not None)


def make_side(side: str, folder: Path, work: Work) -> Callable[[], float]:
    """A side's update; called, it makes one and returns the gradient's norm."""
    return our_side(folder, work) if side == "ours" else peer_side(folder, work, tuned=side == "tuned")


def our_side(folder: Path, work: Work) -> Callable[[], float]:
    """Updates by this project."""
    model, config = shape.load_model(folder, shape.STANDARD), make_config(work)
    optimizer = make_optimizer(config.optimizer, config.steps)
    step = TrainStep(model.config, config, model.mesh, optimizer)
    state = init_state(model.params, optimizer, abstract_state(model.config, optimizer, model.mesh))
    prompts = workload.picture_prompts(model.processor, work.prompts, work.side)
    responses, advantages = draw(model.processor, work)
    mask = np.ones(responses.shape, bool)
    batch = TrainBatch(workload.pack(model.processor, prompts), responses, mask, advantages)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["grad_norm"])

    return run


def peer_side(folder: Path, work: Work, *, tuned: bool) -> Callable[[], float]:
    """Updates by transformers and torch."""
    from benchmarks.peer import Peer
    from benchmarks.train_peer import TrainPeer, keep_freed_memory
    from perception_r1_jax.processing import Processor

    if tuned:
        keep_freed_memory()
    directory = shape.write_checkpoint(folder, shape.STANDARD)
    processor = Processor.from_directory(directory)
    peer = TrainPeer(Peer(directory, processor), make_config(work), fused=tuned)
    prompts = workload.picture_prompts(processor, work.prompts, work.side)
    batch = peer.batch(prompts, *draw(processor, work))

    def run() -> float:
        peer.step(batch)
        return float(peer.norm)

    return run


def make_config(work: Work) -> ConfigDict:
    """The run that both sides take a step of."""
    config = default_config()
    config.steps = 100
    config.model.dtype, config.model.remat = "float32", "none"
    config.rollout.prompts_per_step, config.rollout.samples_per_prompt = work.prompts, work.samples
    config.rollout.response_buckets = (work.new_tokens,)
    config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples = 1, work.samples
    config.grpo.log_prob_chunk = work.samples * work.new_tokens
    return config


def draw(processor, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Responses [N, G, C] of random tokens, none of them special, and advantages [N, G]."""
    rng = np.random.default_rng(1)
    shape_ = (work.prompts, work.samples, work.new_tokens)
    ordinary = min(processor.tokenizer.added_tokens_decoder)
    return rng.integers(0, ordinary, shape_, np.int32), rng.normal(size=shape_[:2]).astype(np.float32)


WORKLOADS: Mapping[str, measure.Workload] = {"group": group, "single": single}

if __name__ == "__main__":
    measure.run(WORKLOADS, __doc__)
