"""Two variants compared: against formulas written out with numpy, and on cases whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from perception_r1_jax.claim.comparison import compare, pair_seeds
from perception_r1_jax.evaluation.compare import RATES
from tests.claim_run import plan, recorded


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Five seeds of both variants, and a sixth of one; the visual reward helps."""
    folder = tmp_path_factory.mktemp("claim")
    runs = plan(folder, ["visual", "accuracy_only"]) + plan(folder, ["visual"], [7])
    return [recorded(run, 0.8 if run.variant == "visual" else 0.6) for run in runs]


@pytest.fixture(scope="module")
def pairs(records):
    return pair_seeds(records, "visual", "accuracy_only")


def test_pairs_are_of_one_seed(pairs):
    assert [(ours.name, theirs.name) for ours, theirs in pairs] == [
        (f"visual-{seed}", f"accuracy_only-{seed}") for seed in range(5)
    ]


@pytest.mark.parametrize("rate", RATES)
def test_mean_and_t_interval_of_the_paired_differences(pairs, rate):
    found = compare(pairs, rate)
    values = np.array([ours.result[f"{rate}_after"] - theirs.result[f"{rate}_after"] for ours, theirs in pairs])
    reach = stats.t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
    t = values.mean() / (values.std(ddof=1) / np.sqrt(5))
    assert found.values == pytest.approx(values)
    assert found.mean == pytest.approx(values.mean())
    assert found.seed_interval == pytest.approx((values.mean() - reach, values.mean() + reach))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert found.ours - found.theirs == pytest.approx(found.mean)


@pytest.mark.parametrize("rate", ["perception", "precision"])
def test_the_interval_over_problems_is_that_of_a_bootstrap_written_out(pairs, rate):
    rng, draws = np.random.default_rng(5), []
    parts = [[record.after.parts(rate) for record in pair] for pair in pairs]
    for _ in range(2000):
        drawn = rng.integers(0, 60, 60)  # the same problems for all runs
        shares = np.array([[above[drawn].sum() / below[drawn].sum() for above, below in pair] for pair in parts])
        draws.append((shares[:, 0] - shares[:, 1]).mean())
    assert compare(pairs, rate).problem_interval == pytest.approx(np.percentile(draws, [2.5, 97.5]), abs=0.015)


def test_the_interval_over_problems_is_the_same_each_time(pairs):
    assert compare(pairs, "perception") == compare(pairs, "perception")


def test_one_seed_has_no_interval_over_seeds(pairs):
    found = compare(pairs[:1], "accuracy")
    assert (found.seed_interval, found.p) == (None, None)
    assert found.problem_interval[0] < found.mean < found.problem_interval[1]


def test_runs_that_do_not_differ_have_no_spread_to_test(records):
    same = [(record, record) for record in records[:3]]
    found = compare(same, "probe")
    assert (found.mean, found.seed_interval, found.p, found.problem_interval) == (0.0, None, None, (0.0, 0.0))


def test_seeds_that_only_one_variant_has_are_no_pairs(records):
    assert pair_seeds(records, "visual", "flipped_20") == []
    assert 7 not in [ours.seed for ours, _ in pair_seeds(records, "visual", "accuracy_only")]
