"""The policy loss against NumPy, token by token, and what masks may not touch."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from perception_r1_jax.grpo.aggregation import AGGREGATIONS, token_weights
from perception_r1_jax.grpo.losses import policy_loss
from perception_r1_jax.grpo.objective import token_objective
from perception_r1_jax.records import TrainBatch
from tests.grpo_fixtures import run_config

CLIP = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0}


@functools.partial(jax.jit, static_argnames=("aggregation", "kind"))
def loss_and_grad(logp, old, advantages, mask, aggregation, kind="clipped"):
    """Value and gradient with respect to the log-probabilities."""
    loss = lambda lp: policy_loss(lp, old, advantages, mask, aggregation=aggregation, kind=kind, **CLIP)[0]  # noqa: E731
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


def oracle_gspo(logp, old, advantages, mask):
    """Mean over responses of min(A s, A clip(s)), s the geometric mean of a response's ratios; its gradient too."""
    losses, grad = [], np.zeros_like(logp)
    responses = np.flatnonzero(mask.any(1))
    for row in responses:
        kept, advantage = mask[row], advantages[row]
        ratio = np.exp(np.mean(logp[row, kept] - old[row, kept]))
        clipped = min(max(ratio, 0.8), 1.3)
        losses.append(-min(advantage * ratio, advantage * clipped))
        if advantage * ratio <= advantage * clipped:  # what is clipped has no gradient
            grad[row, kept] = -advantage * ratio / kept.sum() / len(responses)
        if advantage < 0 and losses[-1] > -3 * advantage:
            losses[-1], grad[row] = -3 * advantage, 0
    return np.mean(losses), grad


def oracle_cispo(logp, old, advantages, mask):
    """Mean over tokens of -clip(ratio) A logp, and its gradient, in which the clipped ratio is a number."""
    loss, grad = 0.0, np.zeros_like(logp)
    for row, token in zip(*np.nonzero(mask)):
        weight = min(max(np.exp(logp[row, token] - old[row, token]), 0.8), 1.3)
        loss -= weight * advantages[row] * logp[row, token] / mask.sum()
        grad[row, token] = -weight * advantages[row] / mask.sum()
    return loss, grad


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


@pytest.mark.parametrize(("dual_clip", "loss"), [(3.0, 6.0), (0.0, 8.0)])
def test_a_dual_clip_of_0_is_no_limit(dual_clip, loss):
    """A token four times as likely as before, with the advantage -2."""
    mask, old = np.ones((1, 1), bool), np.zeros((1, 1), np.float32)
    rows = TrainBatch(None, None, mask, np.float32([-2.0]), old_logps=old, reference_logps=None, rollout_logps=None)
    logp = np.log(np.float32([[4.0]]))
    objective = functools.partial(token_objective, run_config(grpo__dual_clip=dual_clip).grpo)
    losses, stats = jax.jit(objective)(rows, logp, old, np.float32(0))
    np.testing.assert_allclose(losses, [[loss]], rtol=1e-6)
    assert ("clip_fraction_dual" in stats) == bool(dual_clip)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_loss_equals_the_oracle(aggregation, seed):
    case = random_case(seed=seed)
    loss, _ = loss_and_grad(*case, aggregation)
    np.testing.assert_allclose(loss, oracle_loss(*case, aggregation), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "aggregation", "oracle"), [("gspo", "sequence_mean", oracle_gspo), ("cispo", "token_mean", oracle_cispo)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_gspo_and_cispo_equal_their_oracles_in_value_and_gradient(kind, aggregation, oracle, seed):
    logp, old, advantages, mask = random_case(seed=seed)
    old = logp + 0.5 * (old - logp)  # some ratios of whole responses within the clip, some outside
    loss, grad = loss_and_grad(logp, old, advantages, mask, aggregation, kind)
    expected, expected_grad = oracle(*(x.astype(np.float64) for x in (logp, old, advantages)), mask)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-7)
    dirty = loss_and_grad(
        np.where(mask, logp, np.nan), np.where(mask, old, np.inf), advantages, mask, aggregation, kind
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, (loss, grad))


def test_gspo_clips_whole_responses_and_cispo_clips_without_regard_to_the_advantage():
    logp, old = np.log(np.float32([[2.0, 1.1], [0.5, 0.5]])), np.zeros((2, 2), np.float32)
    advantages, mask = np.float32([1.0, 1.0]), np.ones((2, 2), bool)
    _, gspo = policy_loss(logp, old, advantages, mask, kind="gspo", aggregation="token_mean", **CLIP)
    assert (gspo["clip_fraction_high"], gspo["clip_fraction_low"]) == (0.5, 0.0)  # sqrt(2.2) = 1.48
    np.testing.assert_allclose(gspo["ratio_mean"], (np.sqrt(2.2) + 0.5) / 2, rtol=1e-6)
    _, cispo = policy_loss(logp, old, advantages, mask, kind="cispo", aggregation="token_mean", **CLIP)
    assert (cispo["clip_fraction_high"], cispo["clip_fraction_low"]) == (0.25, 0.5)
    _, open_below = policy_loss(logp, old, advantages, mask, kind="cispo", clip_low=1.0)
    assert open_below["clip_fraction_low"] == 0


def test_an_unknown_loss_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="policy loss 'ppo' is unknown; choose one of clipped, gspo, cispo"):
        policy_loss(*random_case(), kind="ppo")


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


def test_annotated_shapes_and_dtypes_are_checked_here():
    logp, old, advantages, mask = random_case()
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        policy_loss(logp, old, advantages, mask[:, :-1])
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        policy_loss(logp, old, advantages, mask.astype(np.float32))
