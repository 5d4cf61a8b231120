"""Judgements counted, so that no failure goes unseen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from perception_r1_jax.judge.verdicts import NONE, OK


def judge_metrics(statuses: Iterable[str]) -> dict[str, float]:
    """How often each status occurs, as "judge/ok", "judge/missing", ..., and "judge/failure_rate".

    The rate is of the judgements asked for, so "none" is outside of it; NaN where none was asked for.
    """
    counts = Counter(statuses)
    asked = counts.total() - counts[NONE]
    rate = (asked - counts[OK]) / asked if asked else math.nan
    return {f"judge/{status}": count for status, count in sorted(counts.items())} | {"judge/failure_rate": rate}
