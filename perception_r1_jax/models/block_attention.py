"""Attention of a few tokens that are fed together, each row behind a prompt of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from perception_r1_jax.models.attention import LEAST


def block_attention(
    q: Float[Array, "N S heads H"],
    own: tuple[Float[Array, "N kv_heads L H"], Float[Array, "N kv_heads L H"]],
    seen: Bool[Array, "N S L"],
    shared: tuple[Float[Array, "kv_heads P H"], Float[Array, "kv_heads P H"]] | None,
) -> Float[Array, "N S heads H"]:
    """One softmax, in float32, over the keys that all rows share and those of the row itself.

    A block has few queries, so the scores of both stand in one array; the keys stay where they are.

    Args:
        q: queries of the tokens that are fed.
        own: keys and values of each row, these tokens included.
        seen: which of them each token may attend to.
        shared: keys and values that stand before all rows, where there are any; every token may attend to them.
    """
    n, s, heads, size = q.shape
    kv_heads = own[0].shape[1]
    runs = jnp.moveaxis(q.reshape(n, s, kv_heads, -1, size), 1, 3).reshape(n, kv_heads, -1, size)  # [N, kv, r x S, H]
    scores = _product("nkqh,nklh->nkql", runs, own[0]) * size**-0.5
    mask = jnp.tile(seen, (1, heads // kv_heads, 1))[:, None]
    scores = jnp.where(mask, scores, LEAST)
    if shared is None:
        return _by_token(_product("nkql,nklh->nkqh", _softmax(scores, q), own[1]), q)
    before = _product("nkqh,kph->nkqp", runs, shared[0]) * size**-0.5
    weights = _softmax(jnp.concatenate([before, scores], axis=-1), q)
    of_shared, of_own = jnp.split(weights, [shared[0].shape[1]], axis=-1)
    out = _product("nkqp,kph->nkqh", of_shared, shared[1]) + _product("nkql,nklh->nkqh", of_own, own[1])
    return _by_token(out, q)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _softmax(scores: jax.Array, like: jax.Array) -> jax.Array:
    return jax.nn.softmax(scores, axis=-1).astype(like.dtype)


def _by_token(out: jax.Array, q: jax.Array) -> jax.Array:
    """[N, kv_heads, r x S, H] -> [N, S, heads, H], in the dtype of the queries."""
    n, s, _, size = q.shape
    out = out.reshape(n, out.shape[1], -1, s, size)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape).astype(q.dtype)
