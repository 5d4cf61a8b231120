"""Chunked log-probabilities against dense ones, and the row that a prompt and a response make."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from perception_r1_jax.grpo.log_probs import predicting_states, response_log_probs, row_mask, token_log_probs
from perception_r1_jax.models import compute_logits, embed_prompts, embed_tokens, forward
from tests import tiny
from tests.grpo_fixtures import BANNED, make_batch, relative_difference

MODEL = tiny.CONFIG

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
    return tiny.params(), hidden, jnp.asarray(rng.integers(0, 90, (3, 10)), jnp.int32)


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
    value = lambda h: token_log_probs(MODEL, params, h, targets * 0 + tiny.IMAGE_ID, chunk=4, **OPTIONS)[0].max()  # noqa: E731
    logp, grad = jax.value_and_grad(value)(hidden)
    assert np.isfinite(logp)
    assert logp < -1e20
    assert np.all(np.isfinite(grad))


def largest_logits(jaxpr) -> int:
    """Numbers in the largest array of logits (an axis V, none of D), in this jaxpr and those inside it."""
    shapes = [var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars]
    own = [np.prod(s) for s in shapes if MODEL.vocab_size in s and MODEL.hidden_size not in s]
    inner = [largest_logits(sub) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return max(own + inner, default=0)


def test_logits_of_a_whole_response_are_never_made(case):
    params, hidden, targets = case
    chunked = lambda p, h: token_log_probs(MODEL, p, h, targets, chunk=2, **OPTIONS)[0].sum()  # noqa: E731
    dense = lambda p, h: dense_log_probs(p, h, targets)[0].sum()  # noqa: E731
    rows, length = targets.shape
    assert largest_logits(jax.make_jaxpr(jax.grad(dense))(params, hidden).jaxpr) == rows * length * MODEL.vocab_size
    assert largest_logits(jax.make_jaxpr(jax.grad(chunked))(params, hidden).jaxpr) == rows * 2 * MODEL.vocab_size


def test_the_row_of_a_prompt_and_a_response():
    # p0 p1 p2 -  r0 r1 -  : L = 4, C = 3
    lengths, response_mask = jnp.array([3, 0]), jnp.array([[True, True, False], [False] * 3])
    mask = row_mask(lengths, 4, response_mask).astype(int)
    np.testing.assert_array_equal(
        mask[0],
        [
            [1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 1, 0, 0],
            [1, 1, 1, 0, 1, 1, 0],
            [1, 1, 1, 0, 1, 1, 0],
        ],
    )
    assert not mask[1].any()
    states = predicting_states(jnp.arange(14.0).reshape(2, 7, 1), lengths, 3)
    np.testing.assert_array_equal(states[0, :, 0], [2, 4, 5])  # p2 predicts r0, r0 predicts r1


def test_responses_equal_one_dense_unpadded_sequence():
    """One prompt and one response, without padding, batch or chunks, through the model's own functions."""
    batch, params = make_batch(), tiny.params()
    options = {"chunk": 4, **OPTIONS}
    logps, _ = jax.jit(lambda p, b: response_log_probs(MODEL, p, b.prompts, b.responses, b.mask, **options))(
        params, batch
    )
    assert np.all(np.isfinite(logps))
    row, sample = 2, int(np.argmax(batch.mask[2].sum(-1)))
    size, count = int(batch.prompts.lengths[row]), int(batch.mask[row, sample].sum())
    prompt, response = tiny.rows(batch.prompts, [row]), batch.responses[row, sample, None, :count]
    text = np.broadcast_to(np.arange(count) + prompt.next_position, (1, 3, count))
    positions = jnp.asarray(np.concatenate([prompt.positions[..., :size], text], axis=2), jnp.int32)
    causal = np.tril(np.ones((1, size + count, size + count), bool))

    @jax.jit
    def one_by_one(params):
        parts = [embed_prompts(MODEL, params, prompt)[:, :size], embed_tokens(MODEL, params, response)]
        hidden = forward(MODEL, params, jnp.concatenate(parts, axis=1), positions, causal)
        return dense_log_probs(params, hidden[:, size - 1 : -1], response)[0]

    np.testing.assert_allclose(logps[row, sample, :count], one_by_one(params)[0], atol=2e-5)
