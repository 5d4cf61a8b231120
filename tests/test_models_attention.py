"""Attention over whole sequences: against its formula, in blocks and whole."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.models.attention import attention, packed_segments

B, T, HEADS, KV_HEADS, H = 2, 19, 6, 2, 4


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def inputs():
    """q, k, v and a mask with rows of all kinds; query 5 of row 0 has no key."""
    mask = np.random.default_rng(3).random((B, T, T)) < 0.5
    mask[0, 5] = False
    return draw(B, T, HEADS, H), draw(B, T, KV_HEADS, H, seed=1), draw(B, T, KV_HEADS, H, seed=2), jnp.asarray(mask)


@pytest.fixture
def block(monkeypatch):
    """Sets the size of a block."""
    return lambda size: monkeypatch.setattr(
        importlib.import_module("perception_r1_jax.models.attention"), "QUERY_BLOCK", size
    )


def formula(q, k, v, mask):
    """softmax(q k / sqrt(H)) v in float64, head by head; query head h reads key head h // 3."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    k, v = (np.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(H)
    scores = np.where(np.asarray(mask)[:, None], scores, -1e30)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize("size", [T, 8, 1])
def test_the_formula_whole_and_in_blocks(block, size):
    block(size)
    q, k, v, mask = inputs()
    out = attention(q, k, v, mask)
    np.testing.assert_allclose(out, formula(q, k, v, mask), atol=2e-6)
    without_key = np.repeat(np.asarray(v)[0].mean(0), HEADS // KV_HEADS, axis=0)
    np.testing.assert_allclose(out[0, 5], without_key, atol=1e-6)
    row = mask[:, 1:2]  # one mask for all queries
    np.testing.assert_allclose(attention(q, k, v, row), formula(q, k, v, row), atol=2e-6)


def gradients(q, k, v, mask, attend=attention):
    weights = draw(*q.shape, seed=4)
    return jax.grad(lambda q, k, v: jnp.sum(weights * attend(q, k, v, mask)), argnums=(0, 1, 2))(q, k, v)


def plain(q, k, v, mask):
    """By softmax over all keys at once, whose gradient JAX derives."""
    k, v = (jnp.repeat(x, HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = jnp.where(mask[:, None], jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(H), -1e30)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, axis=-1), v)


@pytest.mark.parametrize("size", [T, 8, 1])
@pytest.mark.parametrize("scale", [1, 30])
def test_gradients_whole_and_in_blocks_are_those_of_the_plain_softmax(block, size, scale):
    """Also of scores so large that a row's weight is nearly all on one key."""
    block(size)
    q, k, v, mask = inputs()
    q = scale * q
    for found, expected in zip(gradients(q, k, v, mask), gradients(q, k, v, mask, plain)):
        assert np.linalg.norm(expected) > 1
        np.testing.assert_allclose(found, expected, atol=3e-6 * scale)


def float_shapes(jaxpr):
    """Shapes of all floating-point arrays that a program makes, those of its inner programs included."""
    for equation in jaxpr.eqns:
        yield from (x.aval.shape for x in equation.outvars if jnp.issubdtype(x.aval.dtype, jnp.floating))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from float_shapes(inner)


def test_the_backward_pass_keeps_no_scores():
    """What is handed from the forward to the backward pass is no larger than the inputs."""
    _, pull_back = jax.vjp(attention, *inputs())
    assert max(leaf.size for leaf in jax.tree.leaves(pull_back)) < B * HEADS * T * T


def test_blocks_never_hold_the_scores_of_all_queries(block):
    def largest():
        # A function of its own, so that nothing is taken from an earlier trace.
        return max(np.prod(shape) for shape in float_shapes(jax.make_jaxpr(lambda *x: gradients(*x))(*inputs()).jaxpr))

    assert largest() == B * HEADS * T * T
    block(8)
    assert largest() == B * HEADS * 7 * T  # three blocks of 7


def test_bfloat16_stays_bfloat16_forward_and_backward_without_promotion(block):
    block(8)
    q, k, v, mask = inputs()
    exact = gradients(q, k, v, mask)
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out, pull_back = jax.vjp(lambda *x: attention(*x, mask), *narrow)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), formula(q, k, v, mask), atol=0.03)
    for grad, expected in zip(pull_back(draw(*q.shape, seed=4).astype(jnp.bfloat16)), exact):
        assert grad.dtype == jnp.bfloat16
        assert np.linalg.norm(grad.astype(jnp.float32) - expected) < 0.02 * np.linalg.norm(expected)


def test_a_segment_sees_itself_and_nothing_of_another():
    mask = packed_segments(jnp.array([[0, 0, 1, 1, -1], [0, 1, 1, 1, 2]])).mask()
    seen = [["".join(".x"[int(seen)] for seen in row) for row in rows] for rows in np.asarray(mask)]
    assert seen == [
        ["x....", "xx...", "..x..", "..xx.", "....x"],
        ["x....", ".x...", ".xx..", ".xxx.", "....x"],
    ]
