"""What failed in the run, by reason: judgements, comparisons of answers, and what was left out for them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from perception_r1_jax.judge.verdicts import OK
from perception_r1_jax.report.workdir import MissingData

KINDS = {
    "judge/": "Judgements",
    "reward/accuracy/": "Comparisons of answers",
    "reward/custom/": "Rewards of your own",
}
"""Prefix of the metrics that count statuses -> what they are statuses of."""


@dataclasses.dataclass(frozen=True)
class Failures:
    """Counts over the run.

    Attributes:
        statuses: what -> status -> number, "ok" first.
        responses: left out of the updates.
        problems: left out of the data, since they could not be used.
        updates: skipped, since their gradient was not finite.
    """

    statuses: Mapping[str, Mapping[str, int]]
    responses: int
    problems: int
    updates: int


def count_failures(lines: Sequence[Mapping[str, Any]]) -> Failures:
    """Adds the counts of all steps.

    Raises:
        MissingData: there are no metrics.
    """
    if not lines:
        raise MissingData("metrics.jsonl is not there, or has no lines.")
    totals: Counter[str] = Counter()
    for line in lines:
        totals.update({name: value for name, value in line.items() if value is not None})
    return Failures(
        statuses={kind: statuses for prefix, kind in KINDS.items() if (statuses := _statuses(totals, prefix))},
        responses=int(totals["reward/dropped"]),
        problems=int(lines[-1].get("data/dropped") or 0),  # these two are counted from the start of the run
        updates=int(lines[-1].get("train/skipped") or 0),
    )


def _statuses(totals: Mapping[str, float], prefix: str) -> dict[str, int]:
    names = [name for name in totals if name.startswith(prefix) and not name.endswith("_rate")]
    statuses = sorted((name.removeprefix(prefix) for name in names), key=lambda status: (status != OK, status))
    return {status: int(totals[prefix + status]) for status in statuses}
