"""The KL term: estimators by hand, and how its weight moves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.grpo.kl import adapted_scale, has_kl, kl_coefficient, response_kl, token_kl
from perception_r1_jax.records import TrainBatch
from tests.grpo_fixtures import run_config


def test_kl_estimators_by_hand():
    logp, reference = np.float32([[-1.0, -2.0, np.nan]]), np.float32([[-1.5, -1.0, 0.0]])
    mask = np.array([[True, True, False]])
    kl = {name: np.asarray(token_kl(logp, reference, mask, name))[0, :2] for name in ("k1", "k2", "k3")}
    np.testing.assert_allclose(kl["k1"], [0.5, -1.0], rtol=1e-6)
    np.testing.assert_allclose(kl["k2"], [0.125, 0.5], rtol=1e-6)
    np.testing.assert_allclose(kl["k3"], [np.exp(-0.5) - 0.5, np.exp(1) - 2], rtol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_of_a_lost_token_stays_finite(estimator):
    mask = jnp.ones((1, 1), bool)
    value = lambda lp: token_kl(lp, jnp.zeros((1, 1)), mask, estimator).sum()  # noqa: E731
    for logp in (-1e4, 1e4):
        kl, grad = jax.value_and_grad(value)(jnp.full((1, 1), logp))
        assert jnp.isfinite(kl) & jnp.isfinite(grad).all()


def test_an_unknown_name_is_an_error_that_lists_the_known():
    logp, mask = np.zeros((1, 1), np.float32), np.ones((1, 1), bool)
    with pytest.raises(ValueError, match="'k4' is unknown; choose one of k1, k2, k3"):
        token_kl(logp, logp, mask, "k4")


@pytest.mark.parametrize(
    ("with_old", "expected"), [(True, [[0.4, 0.0], [0.5, -0.1]]), (False, [[0.3, 0.0], [0.7, 0.2]])]
)
def test_kl_of_responses_is_a_sum_over_their_tokens_before_the_first_update(with_old, expected):
    mask = np.array([[[1, 1], [0, 0]], [[1, 1], [1, 0]]], bool)
    old = np.float32([[[0.1, 0.3], [np.nan, 9]], [[0.5, 0.0], [-0.1, np.inf]]])
    rollout = np.float32([[[0.1, 0.2], [9, 9]], [[0.3, 0.4], [0.2, 9]]])
    batch = TrainBatch(
        prompts=None,
        responses=None,
        mask=mask,
        advantages=None,
        old_logps=old if with_old else None,
        reference_logps=np.zeros_like(old),
        rollout_logps=rollout,
    )
    np.testing.assert_allclose(jax.jit(response_kl, static_argnums=1)(batch, "k1"), expected, atol=1e-6)


def weight(update, scale=1.0, **fields):
    """`kl_coefficient` in a run of 5 updates that begins with 0.1."""
    overrides = {f"grpo__{name}": value for name, value in {"kl_coefficient": 0.1, **fields}.items()}
    return float(kl_coefficient(run_config(**overrides).grpo, 5, jnp.int32(update), jnp.float32(scale)))


def test_a_fixed_weight_stays_and_a_dynamic_one_grows_or_decays_with_the_update():
    assert [weight(update, scale=3.0) for update in (0, 4)] == pytest.approx([0.1, 0.1])
    grown = [weight(update, kl_schedule="dynamic", kl_final=0.3) for update in range(6)]
    assert grown == pytest.approx([0.1, 0.15, 0.2, 0.25, 0.3, 0.3])
    decayed = [weight(update, kl_schedule="dynamic", kl_final=0.0) for update in (0, 2, 4)]
    assert decayed == pytest.approx([0.1, 0.05, 0.0])


def test_an_adaptive_weight_follows_its_target_by_at_most_two_percent_an_update():
    def oracle(scale, kl, target):
        return scale * (1 + 0.1 * min(max((kl - target) / target, -0.2), 0.2))

    scale = 1.0
    for kl in (0.02, 0.0101, 0.01, 0.009, 0.0, -0.5, 1e6):
        expected = oracle(scale, kl, 0.01)
        assert float(adapted_scale(jnp.float32(scale), jnp.float32(kl), 0.01)) == pytest.approx(expected, rel=1e-6)
        scale = expected
    assert float(adapted_scale(jnp.float32(scale), jnp.float32(np.nan), 0.01)) == pytest.approx(scale)
    assert weight(3, scale=1.5, kl_schedule="adaptive") == pytest.approx(0.15)


def test_a_reference_is_kept_where_the_weight_is_above_zero_at_any_time():
    def kept(**fields):
        return has_kl(run_config(**{f"grpo__{name}": value for name, value in fields.items()}).grpo)

    assert kept(kl_coefficient=0.1)
    assert kept(kl_coefficient=0.0, kl_schedule="dynamic", kl_final=0.1)
    assert not kept(kl_coefficient=0.0, kl_schedule="dynamic", kl_final=0.0)
    assert not kept(kl_coefficient=0.0, kl_final=0.1)
