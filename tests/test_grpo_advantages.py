"""Group advantages on literal arrays."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.grpo.advantages import ADVANTAGES, advantages_of_groups, group_advantages


def test_values_by_hand():
    # mean 1, deviations -1, 0, 1, variance (1 + 0 + 1) / (3 - 1) = 1
    advantages = group_advantages(np.array([[0.0, 1.0, 2.0]], np.float32))
    np.testing.assert_allclose(advantages, [[-1, 0, 1]], atol=2e-6)
    assert advantages.dtype == np.float32


def test_invalid_members_count_in_neither_mean_nor_std():
    rewards = np.array([[0.0, 1.0, 2.0, np.nan], [5.0, 0.0, 1.0, 2.0]], np.float32)
    valid = np.array([[True, True, True, False], [False, True, True, True]])
    np.testing.assert_allclose(group_advantages(rewards, valid), [[-1, 0, 1, 0], [0, -1, 0, 1]], atol=2e-6)


def oracle(rewards, valid, kind):
    """One response at a time."""
    out = np.zeros(rewards.shape)
    for group, member in zip(*np.nonzero(valid)):
        reward, fellows = rewards[group, member], rewards[group][valid[group]]
        if kind == "reinforce_plus_plus":
            fellows = rewards[valid]
        if len(fellows) < 2 or np.ptp(fellows) == 0:
            continue
        if kind == "rloo":
            others = [rewards[group, i] for i in np.flatnonzero(valid[group]) if i != member]
            out[group, member] = reward - np.mean(others)
            continue
        out[group, member] = reward - np.mean(fellows)
        if kind != "dr_grpo":
            out[group, member] /= np.std(fellows, ddof=1) + 1e-6
    return out


@pytest.mark.parametrize("kind", ADVANTAGES)
@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_every_kind_equals_its_oracle_whoever_is_invalid(kind, share):
    rng = np.random.default_rng(0)
    rewards, valid = rng.normal(size=(12, 5)).astype(np.float32), rng.random((12, 5)) < share
    rewards[3] = 0.5
    advantages = group_advantages(np.where(valid, rewards, np.nan), valid, kind=kind)
    np.testing.assert_allclose(advantages, oracle(rewards, valid, kind), rtol=1e-5, atol=1e-6)
    assert np.all(advantages[~valid] == 0)


def test_an_unknown_kind_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="'gae' are unknown; choose one of grpo, dr_grpo, rloo, reinforce_plus_plus"):
        group_advantages(np.zeros((1, 2)), kind="gae")


@pytest.mark.parametrize("reward", [0.1, 1 / 3, 0.9 + 0.07 / 3, -1.7])
@pytest.mark.parametrize("size", [2, 3, 7, 8, 16])
@pytest.mark.parametrize("kind", ADVANTAGES)
def test_equal_rewards_give_exact_zeros(reward, size, kind):
    assert np.all(group_advantages(np.full((2, size), reward, np.float32), kind=kind) == 0)


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
