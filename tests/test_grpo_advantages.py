"""Group advantages on literal arrays."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.grpo.advantages import advantages_of_groups, group_advantages


def test_values_by_hand():
    # mean 1, deviations -1, 0, 1, variance (1 + 0 + 1) / (3 - 1) = 1
    advantages = group_advantages(np.array([[0.0, 1.0, 2.0]], np.float32))
    np.testing.assert_allclose(advantages, [[-1, 0, 1]], atol=2e-6)
    assert advantages.dtype == np.float32


def test_invalid_members_count_in_neither_mean_nor_std():
    rewards = np.array([[0.0, 1.0, 2.0, np.nan], [5.0, 0.0, 1.0, 2.0]], np.float32)
    valid = np.array([[True, True, True, False], [False, True, True, True]])
    np.testing.assert_allclose(group_advantages(rewards, valid), [[-1, 0, 1, 0], [0, -1, 0, 1]], atol=2e-6)


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.9 + 0.07 / 3, -1.7])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16])
def test_equal_rewards_give_exact_zeros(reward, size):
    assert np.all(group_advantages(np.full((2, size), reward, np.float32)) == 0)


def test_paper_fidelity_keeps_the_rounding_of_equal_rewards():
    # 0.1 added 8 times in float32 and divided by 8 is one unit in the last place above 0.1; torch gives -0.00739171.
    advantages = group_advantages(np.full((1, 8), 0.1, np.float32), fidelity="paper")
    np.testing.assert_allclose(advantages, -0.00739171, rtol=1e-5)


def test_groups_that_teach_nothing():
    rewards = np.array([[1, 1, 1], [1, 1, 9], [1, 2, 3], [0, 0, 1], [1, 2, 3]], np.float32)
    valid = np.array([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1], [0, 0, 0]], bool)
    result = advantages_of_groups(rewards, valid)
    np.testing.assert_array_equal(result.no_signal, [True, True, True, False, True])
    assert np.all(result.advantages[result.no_signal] == 0)
    assert np.all(result.advantages[3] != 0)


def test_permutation_of_a_group_permutes_its_advantages():
    rewards = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    order = np.random.default_rng(1).permutation(8)
    np.testing.assert_allclose(group_advantages(rewards)[:, order], group_advantages(rewards[:, order]), rtol=1e-6)


def test_a_reward_that_is_not_finite_is_an_error_with_its_place():
    with pytest.raises(ValueError, match=r"reward \[1, 0\] is nan"):
        group_advantages(np.array([[1, 2], [np.nan, 0]]))
