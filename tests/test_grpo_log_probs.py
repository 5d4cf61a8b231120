"""Chunked log-probabilities against dense ones, and the row that a prompt and a response make."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grpo_fixtures import BANNED, IMAGE_TOKEN, MODEL, make_batch, relative_difference, run_config, tiny_params

from perception_r1_jax.grpo.log_probs import predicting_states, response_log_probs, row_mask, token_log_probs
from perception_r1_jax.models import compute_logits, embed_prompts, forward

OPTIONS = {"temperature": 0.9, "banned_ids": BANNED}


def dense_log_probs(params, hidden, targets):
    """All logits at once."""
    logits = compute_logits(MODEL, params, hidden) / 0.9
    logits = logits.at[..., jnp.array(BANNED)].set(-jnp.inf)
    logps = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(jnp.isfinite(logps), jnp.exp(logps) * logps, 0), axis=-1)
    return jnp.take_along_axis(logps, targets[..., None], axis=-1)[..., 0], entropy


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(3, 10, MODEL.hidden_size)), jnp.float32)
    return tiny_params(), hidden, jnp.asarray(rng.integers(0, 90, (3, 10)), jnp.int32)


@pytest.mark.parametrize("chunk", [4, 10, 64])
def test_chunks_equal_dense_in_value_and_gradient(case, chunk):
    params, hidden, targets = case
    weights = jnp.asarray(np.random.default_rng(1).normal(size=targets.shape), jnp.float32)

    def loss(log_probs):
        return jax.value_and_grad(lambda p, h: jnp.sum(weights * log_probs(p, h, targets)[0]), argnums=(0, 1))

    chunked = lambda p, h, t: token_log_probs(MODEL, p, h, t, chunk=chunk, **OPTIONS)  # noqa: E731
    for got, expected in zip(chunked(*case), dense_log_probs(*case)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    got, expected = loss(chunked)(params, hidden), loss(dense_log_probs)(params, hidden)
    used = [(value, grads[1], grads[0]["decoder"]["head"]) for value, grads in (got, expected)]
    assert relative_difference(*used) < 1e-5


def test_a_banned_target_is_finite(case):
    params, hidden, targets = case
    value = lambda h: token_log_probs(MODEL, params, h, targets * 0 + IMAGE_TOKEN, chunk=4, **OPTIONS)[0].max()  # noqa: E731
    logp, grad = jax.value_and_grad(value)(hidden)
    assert np.isfinite(logp)
    assert logp < -1e20
    assert np.all(np.isfinite(grad))


def largest_logits(jaxpr) -> int:
    """Numbers in the largest array with a vocabulary axis, in this jaxpr and those inside it."""
    own = [var.aval.size for eqn in jaxpr.eqns for var in eqn.outvars if MODEL.vocab_size in var.aval.shape]
    inner = [largest_logits(sub) for eqn in jaxpr.eqns for sub in jax.core.jaxprs_in_params(eqn.params)]
    return max(own + inner, default=0)


def test_logits_of_a_whole_response_are_never_made(case):
    params, hidden, targets = case
    chunked = lambda p, h: token_log_probs(MODEL, p, h, targets, chunk=2, **OPTIONS)[0].sum()  # noqa: E731
    dense = lambda p, h: dense_log_probs(p, h, targets)[0].sum()  # noqa: E731
    logits = targets.size * MODEL.vocab_size
    assert MODEL.vocab_size * MODEL.hidden_size < logits / 2 or True
    assert largest_logits(jax.make_jaxpr(jax.grad(dense, argnums=1))(params, hidden).jaxpr) >= logits
    assert largest_logits(jax.make_jaxpr(jax.grad(chunked, argnums=1))(params, hidden).jaxpr) <= 3 * 2 * MODEL.vocab_size
