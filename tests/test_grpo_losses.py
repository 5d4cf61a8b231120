"""The policy loss against NumPy, token by token, and what masks may not touch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from perception_r1_jax.grpo.losses import AGGREGATIONS, policy_loss, token_kl, token_weights

CLIP = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


@functools.partial(jax.jit, static_argnames="aggregation")
def loss_and_grad(logp, old, advantages, mask, aggregation):
    """Value and gradient with respect to the log-probabilities."""
    loss = lambda lp: policy_loss(lp, old, advantages, mask, aggregation=aggregation, **CLIP)[0]  # noqa: E731
    return jax.value_and_grad(loss)(logp)


def oracle_token(logp, old, advantage):
    """One token's loss as METHOD writes it, in Python."""
    ratio = np.exp(logp - old)
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.3))
    return min(loss, -3 * advantage) if advantage < 0 else loss


def oracle_loss(logp, old, advantages, mask, aggregation):
    """Loops instead of array formulas."""
    rows = [
        [oracle_token(lp, o, advantage) for lp, o, kept in zip(*row) if kept]
        for *row, advantage in zip(logp, old, mask, advantages)
    ]
    full = [row for row in rows if row]
    if aggregation == "sequence_mean":
        return np.mean([np.mean(row) for row in full])
    if aggregation == "token_mean":
        return np.mean([x for row in full for x in row])
    if aggregation == "constant":
        return np.mean([np.sum(row) / logp.shape[1] for row in full])
    runs = [[x for row in rows[i : i + 8] for x in row] for i in range(0, len(rows), 8)]
    return np.mean([np.mean(run) for run in runs if run])


def random_case(rows=19, length=7, seed=0):
    rng = np.random.default_rng(seed)
    logp, old = -rng.uniform(0, 3, (2, rows, length)).astype(np.float32)
    mask = np.arange(length) < rng.integers(0, length + 1, rows)[:, None]
    mask[8:16] &= seed % 2 == 0  # with an odd seed, a whole run of 8 without tokens
    return logp, old, rng.normal(size=rows).astype(np.float32), mask


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.1, 2.0, -2.2, None),
        (1.5, 2.0, -2.6, "high"),  # -2 * 1.3
        (0.5, 2.0, -1.0, None),  # a rising token is not clipped below
        (0.5, -2.0, 1.6, "low"),  # 2 * 0.8
        (1.5, -2.0, 3.0, None),
        (4.0, -2.0, 6.0, "dual"),  # 3 * 2, where the ratio alone gives 8
    ],
)
def test_one_token_by_hand(ratio, advantage, loss, clipped):
    mask = np.ones((1, 1), bool)
    got, metrics = policy_loss(
        np.log([[ratio]]).astype(np.float32), np.zeros((1, 1), np.float32), np.float32([advantage]), mask,
        aggregation="token_mean", **CLIP,
    )  # fmt: skip
    np.testing.assert_allclose(got, loss, rtol=1e-6)
    for name in ("low", "high", "dual"):
        assert metrics[f"clip_fraction_{name}"] == float(name == clipped)
    np.testing.assert_allclose(metrics["ratio_mean"], ratio, rtol=1e-6)
    np.testing.assert_allclose(metrics["approx_kl"], ratio - 1 - np.log(ratio), rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_equals_the_oracle(aggregation, seed):
    case = random_case(seed=seed)
    loss, _ = loss_and_grad(*case, aggregation)
    np.testing.assert_allclose(loss, oracle_loss(*case, aggregation), rtol=1e-5)


def test_loss_is_the_same_without_jit():
    case = random_case()
    loss, _ = policy_loss(*case, aggregation="token_mean", **CLIP)
    np.testing.assert_allclose(loss, loss_and_grad(*case, "token_mean")[0], rtol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_sum_to_the_loss_of_any_split(aggregation):
    logp, old, advantages, mask = random_case()
    whole, _ = loss_and_grad(logp, old, advantages, mask, aggregation)
    weights = np.asarray(jax.jit(token_weights, static_argnums=1)(mask, aggregation))
    losses = np.vectorize(oracle_token)(logp, old, np.broadcast_to(advantages[:, None], logp.shape))
    parts = [np.sum(weights[rows] * losses[rows]) for rows in (slice(0, 3), slice(3, 19))]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)
    assert np.all((weights > 0) == mask)


def test_weights_by_hand():
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(token_weights(mask, "sequence_mean")[:, 0], [1 / 4, 1 / 8, 0])
    np.testing.assert_allclose(token_weights(mask, "token_mean")[:, 0], [1 / 6, 1 / 6, 0])
    np.testing.assert_allclose(token_weights(mask, "constant", max_tokens=10)[:, 0], [1 / 20, 1 / 20, 0])
    nine = np.concatenate([np.ones((8, 4), bool), mask[:1]])  # a run of 32 tokens and one of 2
    np.testing.assert_allclose(token_weights(nine, "micro_batch_mean")[[0, 8], 0], [1 / 64, 1 / 4])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_garbage_outside_the_mask_reaches_neither_loss_nor_gradient(aggregation):
    logp, old, advantages, mask = random_case()
    dirty_logp, dirty_old = np.where(mask, logp, np.nan), np.where(mask, old, -np.inf)
    clean_value, clean_grad = loss_and_grad(logp, old, advantages, mask, aggregation)
    value, grad = loss_and_grad(dirty_logp, dirty_old, advantages, mask, aggregation)
    np.testing.assert_array_equal(value, clean_value)
    np.testing.assert_array_equal(grad, clean_grad)
    assert np.all(np.asarray(grad)[~mask] == 0)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_an_empty_mask_gives_a_loss_of_zero(aggregation):
    logp, old, advantages, mask = random_case()
    value, grad = loss_and_grad(logp, old, advantages, mask & False, aggregation)
    assert value == 0
    assert np.all(np.asarray(grad) == 0)


def test_on_policy_gradient_is_minus_advantage_times_weight():
    logp, _, advantages, mask = random_case()
    expected = -advantages[:, None] * np.asarray(token_weights(mask, "sequence_mean"))
    _, grad = loss_and_grad(logp, logp, advantages, mask, "sequence_mean")
    np.testing.assert_allclose(grad, expected, rtol=1e-6)


def test_advantages_may_be_per_token():
    logp, old, advantages, mask = random_case()
    per_token = np.repeat(advantages[:, None], logp.shape[1], axis=1)
    one = loss_and_grad(logp, old, advantages, mask, "token_mean")
    other = loss_and_grad(logp, old, per_token, mask, "token_mean")
    jax.tree.map(np.testing.assert_array_equal, one, other)


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


def test_unknown_names_are_errors_that_list_the_known():
    logp, old, _, mask = random_case()
    with pytest.raises(ValueError, match="'seq_mean' is unknown; choose one of sequence_mean, token_mean"):
        token_weights(mask, "seq_mean")
    with pytest.raises(ValueError, match="'k4' is unknown; choose one of k1, k2, k3"):
        token_kl(logp, old, mask, "k4")


def test_annotated_shapes_and_dtypes_are_checked_here():
    logp, old, advantages, mask = random_case()
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        policy_loss(logp, old, advantages, mask[:, :-1])
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        policy_loss(logp, old, advantages, mask.astype(np.float32))
