"""The GRPO update beside transformers + torch, which compute picture and prompt for every response.

    python benchmarks/train_step.py [--quick] [--only WORKLOAD] --json OUT

Both sides start from the same checkpoint, prompts and responses, in float32, with the same loss and AdamW. Ours takes a
group at a time. Before anything is timed their first gradients must have the same norm. "tuned" is the peer with the
settings that are best for it here: fused AdamW, and malloc keeping what is freed, as it then does on our side. Each
side has a process of its own, and memory is its peak. "large" is ours alone, of the 3B model in bfloat16, and runs
where jax finds a GPU or TPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import measure, shape, workload
from benchmarks.measure import Case
from benchmarks.side import Side
from benchmarks.train_large import large
from benchmarks.train_work import Work, draw, make_batch, make_config
from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state

TOLERANCE = 1e-3
"""Relative, between the norms of two gradients in float32."""


def group(folder: Path, quick: bool) -> list[Case]:
    """Responses per second of a group that shares a picture of some 1,000 tokens, and the memory of each side."""
    work = Work(1, 8, 8, 90) if quick else Work(1, 8, 128, 900)
    cases = {"peer": ("group", "peak_memory"), "tuned": ("tuned", "memory_tuned")}
    return beside_peers(folder, work, cases, 1 if quick else 3)


def single(folder: Path, quick: bool) -> list[Case]:
    """The same with one response to a prompt: nothing to share."""
    work = Work(2, 1, 8, 90) if quick else Work(4, 1, 128, 900)
    cases = {"peer": ("single", "alone_memory"), "tuned": ("alone_tuned", "alone_memory_tuned")}
    return beside_peers(folder, work, cases, 1 if quick else 3)


def beside_peers(folder: Path, work: Work, names: Mapping[str, tuple[str, str]], rounds: int) -> list[Case]:
    """The cases, of speed and of memory, of ours beside one side of the peer after the other.

    One after the other, since both of the peer's would not fit into memory beside each other.
    """
    cases = []
    for other, (speed, memory) in names.items():
        with contextlib.ExitStack() as stack:
            sides = ("ours", other) if has_torch() else ("ours",)
            found = {
                side: stack.enter_context(Side(make_side, side, folder, work, keep_freed_memory=other == "tuned"))
                for side in sides
            }
            cases.append(time_sides(speed, found, work, rounds))
            peaks = [process.peak() for process in found.values()]
        cases.append(measure.compare(memory, "MiB", *peaks, less_is_better=True))
        if not has_torch():
            break
    return cases


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
    batch = make_batch(model.processor, work)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["grad_norm"])

    return run


def peer_side(folder: Path, work: Work, *, tuned: bool) -> Callable[[], float]:
    """Updates by transformers and torch."""
    from benchmarks.peer import Peer
    from benchmarks.train_peer import TrainPeer
    from perception_r1_jax.processing import Processor

    directory = shape.write_checkpoint(folder, shape.STANDARD)
    processor = Processor.from_directory(directory)
    peer = TrainPeer(Peer(directory, processor), make_config(work), fused=tuned)
    prompts = workload.picture_prompts(processor, work.prompts, work.side)
    batch = peer.batch(prompts, *draw(processor, work))

    def run() -> float:
        peer.step(batch)
        return float(peer.norm)

    return run


WORKLOADS: Mapping[str, measure.Workload] = {"group": group, "single": single, "large": large}

if __name__ == "__main__":
    measure.run(WORKLOADS, __doc__)
