"""Top-k and top-p against a sorting oracle; bans; greedy; the distribution that is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.inference.sampling import Sampling, keep_likeliest, sample


def sorted_keep(logits: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """The oracle: sort, cut at k, then at the first token whose cumulated share reaches p; ties stay."""
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-probs, kind="stable")
    if top_k:
        probs = np.where(probs >= probs[order[min(top_k, len(order)) - 1]], probs, 0)
    shares = np.cumsum(probs[order]) / probs.sum()
    last = order[np.argmax(shares >= top_p - 1e-7)] if top_p < 1 else order[np.flatnonzero(probs[order])[-1]]
    return probs >= probs[last]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (1, 1.0), (0, 0.9), (0, 0.05), (20, 0.5), (500, 0.7)])
def test_keeps_what_sorting_keeps(top_k, top_p):
    logits = np.random.default_rng(0).normal(size=(7, 200)).astype(np.float32) * 3
    kept = np.asarray(jax.jit(keep_likeliest, static_argnums=(1, 2))(jnp.asarray(logits), top_k, top_p))
    expected = np.stack([sorted_keep(row, top_k, top_p) for row in logits])
    np.testing.assert_array_equal(kept, expected)


def test_ties_at_the_threshold_are_kept():
    logits = jnp.log(jnp.asarray([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    assert keep_likeliest(logits, 2, 1.0).tolist() == [[True, True, True, False, False]]
    assert keep_likeliest(logits, 0, 0.5).tolist() == [[True, True, True, False, False]]


def test_greedy_takes_the_likeliest_that_is_not_banned():
    logits = jnp.asarray([[[1.0, 3.0, 2.0, 0.0]]])
    sampling = Sampling(1, stop_ids=(0,), pad_id=0, temperature=0.0, banned_ids=(1,))
    tokens, logps = sample(logits, jax.random.split(jax.random.key(0), (1, 1)), sampling)
    assert tokens.tolist() == [[2]]
    np.testing.assert_allclose(logps, [[2 - np.log(np.exp(1) + np.exp(2) + 1)]], rtol=1e-6)


def test_drawn_shares_are_the_probabilities_at_the_temperature():
    logits = jnp.broadcast_to(jnp.asarray([0.0, 1.0, 2.0, -1.0]), (1, 20_000, 4))
    sampling = Sampling(1, stop_ids=(0,), pad_id=0, temperature=0.5, banned_ids=(1,))
    tokens, logps = sample(logits, jax.random.split(jax.random.key(3), (1, 20_000)), sampling)
    weights = np.exp(np.array([0.0, -np.inf, 2.0, -1.0]) / 0.5)
    shares = np.bincount(np.asarray(tokens)[0], minlength=4) / 20_000
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.01)
    np.testing.assert_allclose(np.exp(logps), (weights / weights.sum())[np.asarray(tokens)], rtol=1e-5)


def test_log_probs_are_those_before_top_k():
    logits = jnp.asarray([[[0.0, 1.0, 2.0]]])
    keys = jax.random.split(jax.random.key(0), (1, 1))
    tokens, logps = sample(logits, keys, Sampling(1, stop_ids=(0,), pad_id=0, top_k=1))
    assert tokens.tolist() == [[2]]
    np.testing.assert_allclose(logps, [[jax.nn.log_softmax(logits[0, 0])[2]]], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"top_p": 0.0}, {"temperature": -1.0}, {"top_k": -1}, {"max_new_tokens": 0}, {"stop_ids": ()}]
)
def test_impossible_settings_are_errors(wrong):
    with pytest.raises(ValueError, match="sampling needs"):
        Sampling(**{"max_new_tokens": 1, "stop_ids": (0,), "pad_id": 0, **wrong})
