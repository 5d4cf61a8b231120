"""A group's attention is the plain softmax over its row's mask, whatever the block of queries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.models import group_attention as module
from perception_r1_jax.models.group_attention import group_attention

N, L, G, C, HEADS, KV_HEADS, H = 2, 5, 2, 7, 4, 2, 8
IN_PROMPT = np.arange(L)[None] < np.array([[5], [3]])
IN_RESPONSE = np.arange(C)[None, None] < np.array([[7, 4], [1, 6]])[..., None]
REAL = np.concatenate([IN_PROMPT, IN_RESPONSE.reshape(N, -1)], axis=1)
COUNTS = REAL.astype(np.float32)[..., None, None]


def draw(*shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(q, k, v):
    """By the mask of the module's picture, all heads' keys written out."""
    place = np.concatenate([np.arange(L), np.tile(L + np.arange(C), G)])
    owner = np.concatenate([np.full(L, -1), np.repeat(np.arange(G), C)])
    may = (place <= place[:, None]) & ((owner == -1) | (owner == owner[:, None]))
    k, v = (jnp.repeat(x.astype(jnp.float32), HEADS // KV_HEADS, axis=2) for x in (k, v))
    scores = jnp.einsum("nthd,nshd->nhts", q.astype(jnp.float32), k) * H**-0.5
    scores = jnp.where((may[None] & REAL[:, None])[:, None], scores, -1e9)
    return jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(scores, axis=-1), v)


def output_and_gradients(attend, q, k, v):
    """Of the tokens that are no padding."""
    weights = draw(N, L + G * C, HEADS, H, seed=3) * COUNTS

    def loss(*x):
        out = attend(*x).astype(jnp.float32)
        return jnp.sum(weights * out), out * COUNTS

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (out, *gradients)]


@pytest.mark.parametrize("block", [1, 4, 10, 1024])
@pytest.mark.parametrize(
    ("scale", "dtype", "tolerance"), [(1, jnp.float32, 1e-5), (30, jnp.float32, 1e-5), (1, jnp.bfloat16, 0.02)]
)
def test_output_and_gradients_are_those_of_the_plain_softmax(monkeypatch, block, scale, dtype, tolerance):
    """Blocks of 1, 2, 4 and all 7 tokens of each response; the second and the third are filled up."""
    monkeypatch.setattr(module, "QUERY_BLOCK", block)
    heads = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (draw(N, L + G * C, count, H, seed=i).astype(dtype) for i, count in enumerate(heads))
    q = q * scale
    ours = functools.partial(group_attention, in_prompt=jnp.asarray(IN_PROMPT), in_response=jnp.asarray(IN_RESPONSE))
    for got, expected in zip(output_and_gradients(ours, q, k, v), output_and_gradients(plain, q, k, v)):
        assert np.isfinite(got).all()
        assert np.linalg.norm(got - expected) < tolerance * np.linalg.norm(expected)
