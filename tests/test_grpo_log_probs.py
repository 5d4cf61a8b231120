"""Chunked log-probabilities against dense ones, and the row that a prompt and its responses make."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from perception_r1_jax.grpo.log_probs import group_positions, predicting_states, response_log_probs, token_log_probs
from perception_r1_jax.models import compute_logits, embed_prompts, embed_tokens, forward, group_attention
from tests import naive, tiny
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


@pytest.mark.parametrize("chunk", [4, 64])
def test_the_entropy_and_its_gradient_equal_numpy(case, chunk):
    """With p the words' probabilities and H the entropy, dH/dlogit = -p (log p + H)."""
    params, hidden, targets = case
    weights = np.random.default_rng(1).normal(size=targets.shape)
    head = np.delete(np.asarray(params["decoder"]["head"]["kernel"], np.float64), BANNED, axis=0)
    exps = np.exp(np.asarray(hidden, np.float64) @ head.T / 0.9)
    p = exps / exps.sum(-1, keepdims=True)
    entropy = -np.sum(p * np.log(p), axis=-1)
    gradient = (weights[..., None] * -p * (np.log(p) + entropy[..., None])) @ head / 0.9

    def weighed(hidden):
        got = token_log_probs(MODEL, params, hidden, targets, chunk=chunk, entropy_gradient=True, **OPTIONS)[1]
        return jnp.sum(weights.astype(np.float32) * got), got

    (_, got), got_gradient = jax.jit(jax.value_and_grad(weighed, has_aux=True))(hidden)
    np.testing.assert_allclose(got, entropy, rtol=1e-5)
    assert relative_difference(got_gradient, gradient.astype(np.float32)) < 1e-5


def test_a_banned_target_is_finite(case):
    params, hidden, targets = case
    value = lambda h: token_log_probs(MODEL, params, h, targets * 0 + tiny.IMAGE_ID, chunk=4, **OPTIONS)[0].max()  # noqa: E731
    logp, grad = jax.value_and_grad(value)(hidden)
    assert np.isfinite(logp)
    assert logp < -1e20
    assert np.all(np.isfinite(grad))


def largest_logits(jaxpr, positions) -> int:
    """Numbers in the largest array of logits ([*positions, words], not D), in this jaxpr and those inside it."""
    shapes = [var.aval.shape for eqn in jaxpr.eqns for var in eqn.outvars]
    own = [np.prod(s) for s in shapes if s[:2] == positions and len(s) == 3 and s[2] != MODEL.hidden_size]
    inner = [largest_logits(sub, positions) for eqn in jaxpr.eqns for sub in jaxprs_in_params(eqn.params)]
    return max(own + inner, default=0)


def test_logits_of_a_whole_response_are_never_made(case):
    params, hidden, targets = case
    chunked = lambda p, h: token_log_probs(MODEL, p, h, targets, chunk=2, **OPTIONS)[0].sum()  # noqa: E731
    dense = lambda p, h: dense_log_probs(p, h, targets)[0].sum()  # noqa: E731

    def largest(function):
        return largest_logits(jax.make_jaxpr(jax.grad(function))(params, hidden).jaxpr, targets.shape)

    assert largest(dense) == targets.size * MODEL.vocab_size
    assert largest(chunked) == targets.size * 20  # a fifth of the words for all positions, not all for a fifth of these


def test_which_state_predicts_which_token_of_a_group():
    # p0 p1 p2 -  a0 a1 -  b0 b1 -  : L = 4, C = 3
    lengths = jnp.array([3, 0])
    states = predicting_states(jnp.arange(20.0).reshape(2, 10, 1), lengths, samples=2, response_length=3)
    np.testing.assert_array_equal(states[0, :, 0], [2, 4, 5, 2, 7, 8])  # p2 predicts a0 and b0, a0 predicts a1


def test_responses_of_a_group_count_on_from_their_prompt():
    positions = group_positions(make_batch().prompts, samples=2, response_length=3)
    prompts = make_batch().prompts
    np.testing.assert_array_equal(positions[:, :, : prompts.tokens.shape[1]], prompts.positions)
    after = np.asarray(positions[:, :, prompts.tokens.shape[1] :]) - prompts.next_position[:, None, None]
    np.testing.assert_array_equal(after, np.broadcast_to([0, 1, 2, 0, 1, 2], after.shape))


@pytest.mark.parametrize("block", [1, 16, 1024])
def test_a_group_as_one_row_equals_a_row_for_each_response(monkeypatch, block):
    """In value and in the gradient of every parameter, whatever the block of queries."""
    monkeypatch.setattr(group_attention, "QUERY_BLOCK", block)
    batch, params = make_batch(), tiny.params()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=batch.mask.shape) * batch.mask, jnp.float32)

    def shared(params):
        return response_log_probs(MODEL, params, batch.prompts, batch.responses, batch.mask, chunk=7, **OPTIONS)[0]

    def apart(params):
        states = naive.predicting_states(MODEL, params, batch.prompts, batch.responses, batch.mask)
        return dense_log_probs(params, states, jnp.asarray(batch.responses))[0]

    def value_and_gradient(log_probs):
        total = jax.jit(jax.value_and_grad(lambda p: jnp.sum(jnp.where(batch.mask, weights * log_probs(p), 0.0))))
        return jax.device_get(total(params))

    (value, gradient), (expected_value, expected) = value_and_gradient(shared), value_and_gradient(apart)
    assert value == pytest.approx(expected_value, rel=1e-5)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
    for (path, ours), theirs in zip(jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(expected)):
        scale = max(np.linalg.norm(theirs), 1e-4 * largest)  # of a parameter that plays no part
        assert np.linalg.norm(ours - theirs) < 1e-5 * scale, jax.tree_util.keystr(path)


def test_no_score_is_made_of_one_response_with_another():
    """The attention's cost grows with G C (L + C), not with (L + G C) squared."""
    n, length, g, c, heads, size = 1, 16, 8, 16, 2, 4
    shapes = [jnp.zeros((n, length + g * c, heads, size))] * 3
    masks = jnp.ones((n, length), bool), jnp.ones((n, g, c), bool)
    compiled = jax.jit(group_attention.group_attention).lower(*shapes, *masks).compile()
    products = 2 * 2 * heads * size * (length**2 + g * c * (length + c))
    assert compiled.cost_analysis()["flops"] < 2 * products
    assert 2 * 2 * heads * size * (length + g * c) ** 2 > 2 * products


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
    causal = jnp.tril(jnp.ones((1, size + count, size + count), bool))

    @jax.jit
    def one_by_one(params):
        parts = [embed_prompts(MODEL, params, prompt)[:, :size], embed_tokens(MODEL, params, response)]
        hidden = forward(MODEL, params, jnp.concatenate(parts, axis=1), positions, causal)
        return dense_log_probs(params, hidden[:, size - 1 : -1], response)[0]

    np.testing.assert_allclose(logps[row, sample, :count], one_by_one(params)[0], atol=2e-5)
