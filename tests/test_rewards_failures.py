"""The four policies on two groups of three, one response of the first group without its visual term."""

from __future__ import annotations

import math

import numpy as np
import pytest

from perception_r1_jax.rewards.failures import RewardFailed, resolve_failures

HOLE = np.array([[False, True, False], [False, False, False]])
VISUAL = np.where(HOLE, math.nan, [[0.5, 1.0, 1.0], [0.25, 0.5, 0.75]])
ACCURACY = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def resolve(policy, holes=HOLE):
    return resolve_failures({"accuracy": ACCURACY, "visual": VISUAL}, {"visual": holes}, {"visual": policy}, ["p", "q"])


@pytest.mark.parametrize(
    ("policy", "first_group", "valid"),
    [
        ("drop_sample", [0.5, 0.0, 1.0], [True, False, True]),
        ("drop_term_for_group", [0.0, 0.0, 0.0], [True, True, True]),
        ("zero", [0.5, 0.0, 1.0], [True, True, True]),
    ],
)
def test_policies(policy, first_group, valid):
    terms, got = resolve(policy)
    np.testing.assert_array_equal(terms["visual"], [first_group, VISUAL[1]])
    np.testing.assert_array_equal(terms["accuracy"], ACCURACY)
    np.testing.assert_array_equal(got, [valid, [True] * 3])


def test_abort_names_the_problem():
    with pytest.raises(RewardFailed, match=r"visual reward of 1 of 6 responses failed, of the problems p;"):
        resolve("abort")


@pytest.mark.parametrize("policy", ["drop_sample", "drop_term_for_group", "zero", "abort"])
def test_an_absent_term_that_did_not_fail_is_no_failure(policy):
    terms, valid = resolve(policy, np.zeros_like(HOLE))
    np.testing.assert_array_equal(terms["visual"], np.nan_to_num(VISUAL))
    assert valid.all()


def test_unknown_policy():
    with pytest.raises(ValueError, match="failure policy 'ignore' for the visual reward"):
        resolve("ignore")


def test_inputs_stay_as_they_are():
    before = VISUAL.copy()
    resolve("drop_term_for_group")
    np.testing.assert_array_equal(VISUAL, before)
