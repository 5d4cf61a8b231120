"""Attention over whole sequences; a decoding step has its own (`cached_attention`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from perception_r1_jax.models.blocks import map_blocks
from perception_r1_jax.records import AnyArray

LEAST = jnp.finfo(jnp.float32).min
"""The score of what may not be attended to."""

QUERY_BLOCK = 1024
"""The most queries whose scores are held at a time."""


def attention(
    q: Float[Array, "B T heads H"],
    k: Float[Array, "B S kv_heads H"],
    v: Float[Array, "B S kv_heads H"],
    mask: Bool[AnyArray, " B #T S"],
) -> Float[Array, "B T heads H"]:
    """Grouped-query attention with a boolean mask (true = may attend); softmax in float32.

    The backward pass makes the scores again. More than `QUERY_BLOCK` queries go through in equal blocks, so that
    [B, heads, block, S] is the largest array. Rows of a softmax are independent, so the result is the same.
    A query without any key gets the mean of the values, a finite number that nobody reads.
    """
    length = q.shape[1]
    count = -(-length // QUERY_BLOCK)
    if count == 1:
        return jax.checkpoint(_attend, prevent_cse=False)(q, k, v, mask)
    mask = jnp.broadcast_to(mask, (mask.shape[0], length, mask.shape[2]))
    return map_blocks(lambda block: _attend(block[0], k, v, block[1]), (q, mask), -(-length // count))


def causal_mask(valid: Bool[AnyArray, "B T"]) -> Bool[Array, "B T T"]:
    """What each token of a row may attend to: itself and what stands before it, padding (not valid) left out."""
    length = valid.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & valid[:, None, :]


def segment_mask(segment_ids: Int[AnyArray, "B T"]) -> Bool[Array, "B T T"]:
    """What each token of a packed row may attend to: itself and what stands before it in its segment; -1 is padding.

    Segments 0 0 1 1 and a padding token:

        1 0 0 0 0
        1 1 0 0 0
        0 0 1 0 0
        0 0 1 1 0
        0 0 0 0 0
    """
    same = jnp.asarray(segment_ids)[:, :, None] == segment_ids[:, None, :]
    return causal_mask(segment_ids >= 0) & same


def _attend(q, k, v, mask):
    """The queries of all heads that share a key head stand in one run: every product is then one of plain matrices."""
    grouped, k, v = jnp.moveaxis(_grouped(q, k), 1, 3), jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)
    by_head, runs = grouped.shape[:-1] + k.shape[2:3], (*grouped.shape[:2], -1)
    scores = _scores("bkqh,bksh->bkqs", grouped.reshape(*runs, q.shape[-1]), k).reshape(by_head)
    weights = jax.nn.softmax(_masked(scores, mask[:, None, None]), axis=-1).reshape(*runs, k.shape[2])
    out = _weigh("bkqs,bksh->bkqh", weights, v).reshape(grouped.shape)
    return jnp.moveaxis(out, 3, 1).reshape(q.shape).astype(q.dtype)


def _grouped(q, k):
    """[..., heads, H] -> [..., kv_heads, heads / kv_heads, H]: the query heads that share a key head side by side."""
    return q.reshape(*q.shape[:-2], k.shape[-2], -1, q.shape[-1])


def _scores(equation, q, k):
    """float32 scores."""
    return jnp.einsum(equation, q, k, preferred_element_type=jnp.float32) * (q.shape[-1] ** -0.5)


def _masked(scores, mask):
    """The least finite number where the mask is false."""
    return jnp.where(mask, scores, LEAST)


def _weigh(equation, weights, v):
    """float32 weighted sums of the values, multiplied in the values' dtype."""
    return jnp.einsum(equation, weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
