"""Two variants compared over the seeds that both have."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

from perception_r1_jax.claim.outcomes import share
from perception_r1_jax.claim.record import Record
from perception_r1_jax.evaluation.compare import RATES
from perception_r1_jax.evaluation.mcnemar import LEVEL
from perception_r1_jax.report.outcome import Interval

SIDES = ("before", "after")
RESAMPLES = 2000

Pair = tuple[Record, Record]
"""Runs of two variants with one seed."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far a measure after training differs between two variants.

    Attributes:
        measure: which one.
        ours, theirs: mean over seeds of each variant's value.
        values: difference for each seed.
        seed_interval: 95% t interval of the mean difference over seeds: how much another seed may change. None with
            fewer than two seeds, or without any spread.
        p: of the paired t-test over seeds, None likewise.
        problem_interval: 95% bootstrap interval over problems, seeds as they are: how much other problems may change.
    """

    measure: str
    ours: float
    theirs: float
    values: tuple[float, ...]
    seed_interval: Interval | None
    p: float | None
    problem_interval: Interval

    @property
    def mean(self) -> float:
        """Over seeds."""
        return self.ours - self.theirs


def pair_seeds(records: Sequence[Record], ours: str, theirs: str) -> list[Pair]:
    """The runs of two variants, paired by seed; seeds that only one of them has are left out."""
    of = {name: {record.seed: record for record in records if record.variant == name} for name in (ours, theirs)}
    return [(of[ours][seed], of[theirs][seed]) for seed in sorted(of[ours].keys() & of[theirs].keys())]


def compare(pairs: Sequence[Pair], measure: str) -> Difference:
    """The difference of a measure after training, `pairs` one or more."""
    ours, theirs = (np.array([after(pair[side], measure) for pair in pairs]) for side in (0, 1))
    values = ours - theirs
    seed_interval, p = _t_test(values)
    return Difference(
        measure,
        float(ours.mean()),
        float(theirs.mean()),
        tuple(values.tolist()),
        seed_interval,
        p,
        _bootstrap_problems(pairs, measure),
    )


def measured(records: Sequence[Record]) -> list[str]:
    """The rates that every run has, before and after; one that states no fact has no precision, and is not averaged."""
    return [
        rate for rate in RATES if None not in {record.result[f"{rate}_{when}"] for record in records for when in SIDES}
    ]


def after(record: Record, measure: str) -> float:
    """A measure after training."""
    return share(record.after.parts(measure))


def _t_test(values: np.ndarray) -> tuple[Interval | None, float | None]:
    if len(values) < 2 or np.ptp(values) == 0:
        return None, None
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return (float(low), float(high)), float(test.pvalue)


def _bootstrap_problems(pairs: Sequence[Pair], measure: str) -> Interval:
    """Problems are drawn anew, the same ones for all runs."""
    parts = [part for pair in pairs for record in pair for part in record.after.parts(measure)]

    def difference(*drawn: np.ndarray, axis: int) -> np.ndarray:
        sums = np.stack([part.sum(axis) for part in drawn]).reshape(len(pairs), 2, 2, -1)  # pair, side, ratio's parts
        ratios = sums[:, :, 0] / sums[:, :, 1]
        return (ratios[:, 0] - ratios[:, 1]).mean(0)

    drawn = stats.bootstrap(
        parts,
        difference,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=100,
        confidence_level=LEVEL,
        method="percentile",
        rng=0,
    )
    low, high = drawn.confidence_interval
    return float(low), float(high)
