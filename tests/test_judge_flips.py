"""Verdicts turned round: how many, which, and what stays the judge's own."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.judge.flips import flip_verdicts
from perception_r1_jax.judge.metrics import judge_metrics
from perception_r1_jax.judge.verdicts import Judgement

NAMES = [f"train/{number}" for number in range(100)]
ROWS = [[Judgement((1.0, 0.0, 1.0), 3, 3, "ok") for _ in range(8)] for _ in NAMES]


def turned(rows, names=NAMES, share=0.2, seed=0, step=1) -> np.ndarray:
    """Which verdicts [N, G, M] are not what the judge said."""
    flipped = flip_verdicts(rows, names, share, seed=seed, step=step)
    said, used = (np.array([[item.verdicts for item in row] for row in table]) for table in (rows, flipped))
    return said != used


def test_the_share_holds_over_verdicts_annotations_and_samples():
    share = np.mean([turned(ROWS, step=step) for step in range(10)], axis=0)  # 24,000 verdicts
    assert share.mean() == pytest.approx(0.2, abs=0.01)
    assert share.mean(axis=(0, 1)) == pytest.approx(np.full(3, 0.2), abs=0.02)
    assert share.mean(axis=(0, 2)) == pytest.approx(np.full(8, 0.2), abs=0.04)


def test_verdicts_turn_on_their_own():
    changed = turned(ROWS).reshape(-1, 3).astype(float)
    assert np.abs(np.corrcoef(changed.T)[np.triu_indices(3, 1)]).max() < 0.12  # 800 responses


@pytest.mark.parametrize(("share", "values"), [(0.0, (1.0, 0.0, 0.25)), (1.0, (0.0, 1.0, 0.75))])
def test_none_and_all(share, values):
    rows = [[Judgement((1.0, 0.0, 0.25), 3, 3, "ok")]]
    assert flip_verdicts(rows, ["a"], share, seed=3, step=7)[0][0].verdicts == values


def test_a_probability_turns_with_its_verdict():
    rows = [[Judgement((1.0, 0.0, 1.0), 3, 3, "ok", (0.875, 0.25, 0.625)) for _ in range(8)]]
    before, after = (
        np.array([(item.verdicts, item.probabilities) for item in row])
        for row in (rows[0], flip_verdicts(rows, ["a"], 0.5, seed=3, step=7)[0])
    )
    turned = before[:, 0] != after[:, 0]
    assert 3 < turned.sum() < 21
    np.testing.assert_array_equal(after[:, 1], np.where(turned, 1 - before[:, 1], before[:, 1]))


def test_which_ones_turn_is_fixed_and_does_not_depend_on_the_batch_or_what_is_said():
    whole = turned(ROWS)
    np.testing.assert_array_equal(whole, turned(ROWS))
    np.testing.assert_array_equal(whole[::-3], turned(ROWS[::-3], NAMES[::-3]))
    np.testing.assert_array_equal(whole[:, :2], turned([row[:2] for row in ROWS]))
    shorter = [[Judgement((0.0, 0.0), 2, 2, "ok") for _ in row] for row in ROWS]
    np.testing.assert_array_equal(whole[..., :2], turned(shorter))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"step": 2}, {"names": NAMES[::-1]}], ids=lambda change: next(iter(change))
)
def test_another_seed_step_or_problem_turns_others(change):
    assert 0.25 < (turned(ROWS) != turned(ROWS, **change)).mean() < 0.39  # 2 x 0.2 x 0.8


def test_what_has_no_verdicts_and_every_status_stay_as_they_are():
    rows = [[Judgement(None, 2, 1, "missing"), Judgement(None, 0, 0, "none"), Judgement((1.0,), 1, 1, "ok")]]
    flipped = flip_verdicts(rows, ["a"], 1.0, seed=0, step=1)
    assert flipped[0][:2] == rows[0][:2]
    assert flipped[0][2] == Judgement((0.0,), 1, 1, "ok")
    said, used = (judge_metrics(item.status for item in table[0]) for table in (rows, flipped))
    assert said == used
