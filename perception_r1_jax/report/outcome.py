"""What training changed: measures before and after on the same problems, each with its test and interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.mcnemar import LEVEL
from perception_r1_jax.evaluation.pairs import Pairs
from perception_r1_jax.evaluation.summary import FIELDS, pair_items
from perception_r1_jax.report.before_after import BeforeAfter

STANDARD_ERRORS = NormalDist().inv_cdf((1 + LEVEL) / 2)
"""Half the width of an interval."""

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Precision:
    """Share of the stated facts that are true of the picture, before and after; `interval` is of its change."""

    before: float
    after: float
    stated_before: int
    stated_after: int
    interval: Interval

    @property
    def difference(self) -> float:
        """`after` less `before`."""
        return self.after - self.before


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All changes between two evaluations.

    Attributes:
        evaluations: the two.
        changes: measure -> its verdicts, paired; a measure without a verdict on any problem is left out.
        precision: None without the counts of stated facts.
    """

    evaluations: BeforeAfter
    changes: Mapping[str, Pairs]
    precision: Precision | None


def make_outcome(evaluations: BeforeAfter) -> Outcome:
    """Counts and tests every measure that the evaluations have."""
    changes = {field: pair_items(evaluations.before, evaluations.after, field) for field in FIELDS}
    return Outcome(
        evaluations,
        {name: pairs for name, pairs in changes.items() if pairs.count},
        compare_precision(evaluations.items),
    )


def compare_precision(items: Sequence[tuple[Item, Item]]) -> Precision | None:
    """Pools the stated facts of all responses; None where they were not counted, or none was stated.

    The facts of one response stand or fall together, so the interval takes problems for the units: it has the
    linearised variance of a ratio of sums.
    """
    known = [counts for pair in items if None not in (counts := [_facts(item) for item in pair])]
    counts = np.array(known, np.float64).reshape(-1, 2, 2)  # problem, before and after, right and stated
    (right_before, stated_before), (right_after, stated_after) = counts.sum(0).tolist()
    if not (stated_before and stated_after):
        return None
    before, after = right_before / stated_before, right_after / stated_after
    pull_before = (counts[:, 0, 0] - before * counts[:, 0, 1]) / stated_before
    pull_after = (counts[:, 1, 0] - after * counts[:, 1, 1]) / stated_after
    reach = STANDARD_ERRORS * math.sqrt(((pull_after - pull_before) ** 2).sum())
    interval = (after - before - reach, after - before + reach)
    return Precision(before, after, int(stated_before), int(stated_after), interval)


def _facts(item: Item) -> tuple[int, int] | None:
    """Facts that a response states rightly, and all that it states."""
    if item.facts_right is None or item.facts_wrong is None:
        return None
    return item.facts_right, item.facts_right + item.facts_wrong
