"""Distances between sampler and trainer, by hand."""

from __future__ import annotations

import jax
import numpy as np

from perception_r1_jax.grpo.ratios import MAX_LOG_RATIO, rollout_mismatch, truncated_importance

MASK = np.array([[1, 1, 1, 1, 0]], bool)
OLD = np.float32([[-1.0, -1.0, -1.0, -1.0, np.nan]])
ROLLOUT = np.log(np.float32([[1.0, 2.0, 0.25, 1e-30, 1.0]])) - 1  # old / rollout = 1, 1/2, 4, e^69


def test_a_token_s_weight_is_its_ratio_up_to_the_cap():
    weights, stats = truncated_importance(OLD, ROLLOUT, MASK, 2.0)
    np.testing.assert_allclose(weights[0, :4], [1.0, 0.5, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_array_equal(stats["importance_capped"][0, :4], [False, False, True, True])
    np.testing.assert_array_equal(stats["importance_mean"], weights)


def test_no_gradient_flows_through_a_weight():
    grad = jax.grad(lambda old: truncated_importance(old, ROLLOUT, MASK, 2.0)[0].sum())(OLD)
    np.testing.assert_array_equal(grad, 0)


def test_mismatch_is_the_same_in_both_directions_and_finite():
    stats = rollout_mismatch(OLD, ROLLOUT, MASK)
    expected = [0.0, np.log(2), np.log(4), MAX_LOG_RATIO]
    np.testing.assert_allclose(stats["rollout_train_logp_diff"][0, :4], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stats["token_mult_prob_error"][0, :4], np.exp(expected), rtol=1e-5)
