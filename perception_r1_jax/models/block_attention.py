"""Attention of rows that share what they begin with, and of a few tokens that are fed together behind each row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from perception_r1_jax.models.attention import LEAST
from perception_r1_jax.models.blocks import SPANS, map_blocks, map_spans

PREFILL_BLOCK = 32
"""Queries of each row whose scores are held at a time; on a CPU 8 to 64 were equally fast."""


def attention_behind(
    q: Float[Array, "N T heads H"],
    k: Float[Array, "N T kv_heads H"],
    v: Float[Array, "N T kv_heads H"],
    mask: Bool[Array, "N T T"],
    shared: tuple[Float[Array, "kv_heads P H"], Float[Array, "kv_heads P H"]],
) -> Float[Array, "N T heads H"]:
    """Attention of whole rows to themselves where the mask is true, and to all keys that they share.

    The mask is causal: no query sees a key behind it.
    """
    own, length = (jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)), q.shape[1]
    size = min(PREFILL_BLOCK, length)

    def attend(start, end):
        seen = tuple(x[:, :, :end] for x in own)
        queries = (q[:, start:end], mask[:, start:end, :end])
        return map_blocks(lambda block: block_attention(block[0], seen, block[1], shared), queries, size)

    return map_spans(attend, length, -(-length // (SPANS * size)) * size)


def block_attention(
    q: Float[Array, "N S heads H"],
    own: tuple[Float[Array, "N kv_heads L H"], Float[Array, "N kv_heads L H"]],
    seen: Bool[Array, "N S L"],
    shared: tuple[Float[Array, "kv_heads P H"], Float[Array, "kv_heads P H"]] | None,
) -> Float[Array, "N S heads H"]:
    """One softmax, in float32, over the keys that all rows share and those of the row itself.

    The shared keys are multiplied with the queries of all rows in one product; they are never held for each row.

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
        return _by_token(_product("nkql,nklh->nkqh", jax.nn.softmax(scores, axis=-1).astype(q.dtype), own[1]), q)
    before = _product("kqh,kph->kqp", _by_head(runs), shared[0]) * size**-0.5
    top = jnp.maximum(_by_row(before.max(-1), n), scores.max(-1))
    before, weights = jnp.exp(before - _by_head(top)[..., None]), jnp.exp(scores - top[..., None])
    total = _by_row(before.sum(-1), n) + weights.sum(-1)
    out = _by_row(_product("kqp,kph->kqh", before.astype(q.dtype), shared[1]), n)
    out += _product("nkql,nklh->nkqh", weights.astype(q.dtype), own[1])
    return _by_token(out / total[..., None], q)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _by_head(x: jax.Array) -> jax.Array:
    """[N, kv_heads, Q, ...] -> [kv_heads, N x Q, ...]: the queries of all rows in one run."""
    x = jnp.moveaxis(x, 1, 0)
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def _by_row(x: jax.Array, rows: int) -> jax.Array:
    """[kv_heads, N x Q, ...] -> [N, kv_heads, Q, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], rows, -1, *x.shape[2:]), 0, 1)


def _by_token(out: jax.Array, q: jax.Array) -> jax.Array:
    """[N, kv_heads, r x S, H] -> [N, S, heads, H], in the dtype of the queries."""
    n, s, _, size = q.shape
    out = out.reshape(n, out.shape[1], -1, s, size)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape).astype(q.dtype)
