"""What changed between two evaluations: counts by measure, and the precision of what is stated."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.report.before_after import BeforeAfter
from perception_r1_jax.report.outcome import compare_precision, make_outcome


def stating(right: int | None, wrong: int | None, **fields) -> Item:
    return Item("p", "x", facts_right=right, facts_wrong=wrong, **fields)


def test_precision_pools_facts_over_problems():
    pairs = [(stating(1, 1), stating(4, 0)), (stating(2, 0), stating(2, 2)), (stating(None, None), stating(9, 9))]
    precision = compare_precision(pairs)
    assert (precision.before, precision.after) == (3 / 4, 6 / 8)
    assert (precision.stated_before, precision.stated_after) == (4, 8)
    assert precision.difference == 0


def test_precision_of_one_fact_each_has_the_interval_of_paired_shares():
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 2, (2, 200))
    pairs = [(stating(int(a), int(1 - a)), stating(int(b), int(1 - b))) for a, b in zip(before, after)]
    low, high = compare_precision(pairs).interval
    reach = 1.959964 * (after - before).std() / np.sqrt(200)
    assert (low, high) == pytest.approx((after.mean() - before.mean() - reach, after.mean() - before.mean() + reach))


def test_the_interval_holds_the_spread_over_draws_of_problems():
    rng = np.random.default_rng(1)
    stated = rng.integers(0, 6, (400, 2))
    right = rng.binomial(stated, [0.7, 0.8])
    pairs = [
        (stating(int(r[0]), int(s[0] - r[0])), stating(int(r[1]), int(s[1] - r[1]))) for r, s in zip(right, stated)
    ]
    low, high = compare_precision(pairs).interval
    draws = rng.integers(0, 400, (2000, 400))
    shares = right[draws].sum(1) / stated[draws].sum(1)
    assert (low, high) == pytest.approx(np.quantile(shares[:, 1] - shares[:, 0], [0.025, 0.975]), abs=0.006)


@pytest.mark.parametrize("pairs", [[], [(stating(0, 0), stating(1, 0))], [(stating(None, None), stating(1, 0))]])
def test_without_stated_facts_there_is_no_precision(pairs):
    assert compare_precision(pairs) is None


def test_a_measure_without_verdicts_is_left_out():
    pairs = [(stating(1, 0, accuracy=0.0, probe=None), stating(1, 0, accuracy=1.0, probe=1.0))]
    changes = make_outcome(BeforeAfter(5, pairs)).changes
    assert list(changes) == ["accuracy"]
    assert (changes["accuracy"].gained, changes["accuracy"].count) == (1, 1)
