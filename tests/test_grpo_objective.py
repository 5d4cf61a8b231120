"""A token's loss with all its parts, against NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.grpo.objective import token_objective
from perception_r1_jax.records import TrainBatch
from tests.grpo_fixtures import run_config

KL_WEIGHT = np.float32(0.3)


def case(seed=0):
    """Log-probs of the policy, entropies and a batch of 5 responses."""
    rng = np.random.default_rng(seed)
    logps, old, reference, rollout = -rng.uniform(0, 2, (4, 5, 6)).astype(np.float32)
    entropy = rng.uniform(0, 3, (5, 6)).astype(np.float32)
    mask = np.arange(6) < np.array([6, 3, 1, 0, 4])[:, None]
    rows = TrainBatch(None, None, mask, rng.normal(size=5).astype(np.float32), old, reference, rollout)
    return rows, logps, entropy


def oracle(grpo, rows, logps, entropy):
    """Token by token, in Python."""
    out = np.zeros(logps.shape)
    for row, token in zip(*np.nonzero(rows.mask)):
        logp, old = logps[row, token], rows.old_logps[row, token]
        kept, advantage = rows.mask[row], rows.advantages[row]
        if grpo.loss == "cispo":
            loss = -np.clip(np.exp(logp - old), 0.8, 1.3) * advantage * logp
        else:
            ratio = np.exp(logp - old)
            if grpo.loss == "gspo":
                ratio = np.exp(np.mean(logps[row, kept] - rows.old_logps[row, kept]))
            loss = max(-advantage * ratio, -advantage * np.clip(ratio, 0.8, 1.3))
            loss = min(loss, -3 * advantage) if advantage < 0 else loss
        if grpo.importance_cap:
            loss *= min(np.exp(old - rows.rollout_logps[row, token]), grpo.importance_cap)
        difference = logp - rows.reference_logps[row, token]
        if grpo.kl_in == "loss":
            k = {"k1": difference, "k2": difference**2 / 2, "k3": np.exp(-difference) - 1 + difference}
            loss += KL_WEIGHT * k[grpo.kl_estimator]
        out[row, token] = loss - grpo.entropy_coefficient * entropy[row, token]
    return out


def objective(rows, logps, entropy, **fields):
    grpo = run_config(**{f"grpo__{name}": value for name, value in fields.items()}).grpo
    losses, stats = jax.jit(lambda *args: token_objective(grpo, *args))(rows, logps, entropy, KL_WEIGHT)
    return grpo, np.where(rows.mask, losses, 0), stats


@pytest.mark.parametrize("loss", ["clipped", "gspo", "cispo"])
@pytest.mark.parametrize(
    "fields",
    [
        {"importance_cap": 2.0},
        {"kl_estimator": "k1"},
        {"kl_estimator": "k2", "entropy_coefficient": 0.1},
        {"kl_estimator": "k3", "importance_cap": 1.5, "entropy_coefficient": 0.1},
        {"kl_in": "reward"},
    ],
)
def test_all_parts_equal_the_oracle(loss, fields):
    grpo, losses, stats = objective(*case(), loss=loss, **fields)
    np.testing.assert_allclose(losses, oracle(grpo, *case()), rtol=1e-5, atol=1e-6)
    assert {"kl", "entropy", "rollout_train_logp_diff"} <= stats.keys()
    assert ("importance_mean" in stats) == bool(grpo.importance_cap)


@pytest.mark.parametrize(
    ("estimator", "slope"), [("k1", np.ones_like), ("k2", lambda d: d), ("k3", lambda d: 1 - np.exp(-d))]
)
def test_the_kl_term_has_its_estimator_s_gradient(estimator, slope):
    rows, logps, entropy = jax.tree.map(jnp.asarray, case())
    grpo = run_config(grpo__kl_estimator=estimator).grpo

    def total(logps, weight):
        losses, _ = token_objective(grpo, rows, logps, entropy, weight)
        return jnp.sum(losses, where=rows.mask)

    given = jax.grad(total)(logps, jnp.float32(KL_WEIGHT)) - jax.grad(total)(logps, jnp.float32(0))
    expected = np.where(rows.mask, KL_WEIGHT * slope(logps - rows.reference_logps), 0)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", ["clipped", "gspo"])
@pytest.mark.parametrize("seed", range(3))
def test_off_policy_the_gradient_is_the_oracle_s(loss, seed):
    """By differences of the oracle in float64, far from the places where a clip begins."""
    rows, logps, entropy = case(seed)
    grpo = run_config(grpo__loss=loss, grpo__importance_cap=2.0).grpo

    def total(rows, logps, entropy):
        losses, _ = token_objective(grpo, rows, logps, entropy, jnp.float32(KL_WEIGHT))
        return jnp.sum(losses, where=rows.mask)

    expected = np.zeros(logps.shape)
    for at in zip(*np.nonzero(rows.mask)):
        step = np.zeros(logps.shape)
        step[at] = 1e-6
        ends = (oracle(grpo, rows, logps.astype(np.float64) + sign * step, entropy).sum() for sign in (1, -1))
        expected[at] = (next(ends) - next(ends)) / 2e-6
    given = jax.grad(total, argnums=1)(*jax.tree.map(jnp.asarray, (rows, logps, entropy)))
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_without_old_log_probs_the_policy_s_own_are_old_and_stopped():
    rows, logps, entropy = jax.tree.map(jnp.asarray, case())
    rows = dataclasses.replace(rows, old_logps=None, reference_logps=None)

    def total(logps, rows):
        losses, _ = token_objective(run_config(grpo__importance_cap=2.0).grpo, rows, logps, entropy, jnp.float32(0))
        return losses.sum()

    given = jax.grad(total)(logps, dataclasses.replace(rows, old_logps=logps))
    np.testing.assert_array_equal(jax.grad(total)(logps, rows), given)
    weights = np.minimum(np.exp(logps - rows.rollout_logps), np.float32(2))
    np.testing.assert_allclose(given, np.where(rows.mask, -rows.advantages[:, None] * weights, 0), rtol=1e-5)


def test_mismatch_is_between_sampler_and_trainer_not_between_policies():
    rows, logps, entropy = case()
    rows = dataclasses.replace(rows, rollout_logps=rows.old_logps + np.float32(0.1))
    stats = objective(rows, logps, entropy)[2]
    np.testing.assert_allclose(np.asarray(stats["rollout_train_logp_diff"])[rows.mask], 0.1, rtol=1e-4)
