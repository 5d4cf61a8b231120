"""Judgements counted, so that no failure goes unseen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from perception_r1_jax.judge.verdicts import NONE, OK

_RATE = "judge/failure_rate"


def judge_metrics(statuses: Iterable[str]) -> dict[str, float]:
    """How often each status occurs, as "judge/ok", "judge/missing", ..., and "judge/failure_rate".

    The rate is of the judgements asked for, so "none" is outside of it; NaN where none was asked for.
    """
    counts = Counter(statuses)
    asked = counts.total() - counts[NONE]
    rate = (asked - counts[OK]) / asked if asked else math.nan
    return {f"judge/{status}": count for status, count in sorted(counts.items())} | {_RATE: rate}


def all_failed(metrics: Mapping[str, float]) -> str:
    """The reasons, for people, where every judgement of these `judge_metrics` has failed; "" where one has not."""
    if metrics[_RATE] != 1:
        return ""
    counts = {name.removeprefix("judge/"): count for name, count in metrics.items() if name != _RATE}
    return ", ".join(f"{status} {count}" for status, count in counts.items() if status != NONE)
