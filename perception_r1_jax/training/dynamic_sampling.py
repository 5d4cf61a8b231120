"""Dynamic sampling: groups without signal are replaced by further ones (DAPO, arXiv 2503.14476, section 3.2).

A step draws whole batches of prompts until enough groups teach something, but only so many. What is more than enough is
carried over to the next step; what is missing is filled up with groups without signal. So a step always ends, the shape
of its batch is always the same, and a group is carried over once at most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from perception_r1_jax.records import Prompt
from perception_r1_jax.training.groups import Groups, join, read_groups, write_groups
from perception_r1_jax.training.replay import rollout_file


@dataclasses.dataclass(frozen=True)
class Filled:
    """What a step has drawn and what it takes.

    Attributes:
        drawn: all groups drawn in this step.
        batch: as many groups as a batch has.
        carried: groups with signal for the next step; None for none.
        metrics: `rollout/rounds` of drawing, groups `rollout/carried_in` and `rollout/carried_out`, and
            `rollout/unfilled`: the share of the batch without signal. Empty where only a single round may be drawn.
    """

    drawn: Groups
    batch: Groups
    carried: Groups | None
    metrics: dict[str, float]


def fill_batch(draw: Callable[[int], Groups], carried: Groups | None, size: int, max_rounds: int) -> Filled:
    """Draws until `size` groups have signal, at most `max_rounds` times.

    Where that is 1 its groups are taken as they come.

    Args:
        draw: makes the groups of a round, counted from 0.
        carried: from the step before, fewer than `size`; they come first.
        size: groups of a batch.
        max_rounds: at least 1.
    """
    if max_rounds == 1:
        groups = draw(0)
        return Filled(groups, groups, None, {})
    drawn: list[Groups] = []
    held = [carried] if carried else []
    while len(drawn) < max_rounds and sum((~groups.without_signal).sum() for groups in held) < size:
        drawn.append(draw(len(drawn)))
        held.append(drawn[-1])
    groups = join(held)
    flat = groups.without_signal
    ranked = np.argsort(flat, kind="stable")  # those with signal first, each kind in the order in which it was drawn
    spare = ranked[size : max(size, int((~flat).sum()))]
    metrics = {
        "rollout/rounds": float(len(drawn)),
        "rollout/carried_in": float(len(carried) if carried else 0),
        "rollout/carried_out": float(len(spare)),
        "rollout/unfilled": float(flat[ranked[:size]].mean()),
    }
    return Filled(join(drawn), groups.take(ranked[:size]), groups.take(spare) if len(spare) else None, metrics)


def write_carried(workdir: Path, step: int, carried: Groups | None, checkpoints: Collection[int]) -> None:
    """Keeps what a step carries over beside its checkpoint, before that is written; files of no checkpoint go."""
    path = _file(workdir, step)
    if carried:
        write_groups(path, carried)
    for other in path.parent.glob("step-*.npz"):
        kept = {_file(workdir, step) for step in checkpoints} | ({path} if carried else set())
        if other not in kept:
            other.unlink()


def read_carried(workdir: Path, step: int, to_prompt: Callable[[str], Prompt]) -> Groups | None:
    """What the checkpoint's step carried over; None for nothing."""
    path = _file(workdir, step)
    return read_groups(path, to_prompt) if path.is_file() else None


def _file(workdir: Path, step: int) -> Path:
    return rollout_file(workdir / "carried", step)
