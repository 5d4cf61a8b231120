"""Attention over whole sequences, behind one function; a decoding step has its own (`cached_attention`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from perception_r1_jax.errors import UserError
from perception_r1_jax.models.blocks import map_blocks
from perception_r1_jax.models.splash import splash_attention
from perception_r1_jax.records import AnyArray

BACKENDS = {"xla": ("cpu", "gpu", "tpu"), "cudnn": ("gpu",), "splash": ("tpu",)}
"""Who computes attention, and the platforms that have it."""

LEAST = jnp.finfo(jnp.float32).min
"""The score of what may not be attended to."""

QUERY_BLOCK = 1024
"""The most queries whose scores are held at a time."""


@dataclasses.dataclass(frozen=True)
class Segments:
    """A mask that is never an array of all pairs: tokens attend to those of their own segment, padding being one, too.

    Attributes:
        queries: int32 [B, T], the segment of each query.
        keys: int32 [B, S], that of each key.
        causal: whether they attend only to themselves and what stands before them; the last query stands at the last
            key.
    """

    queries: Int[AnyArray, "B T"]
    keys: Int[AnyArray, "B S"]
    causal: bool

    @property
    def offset(self) -> int:
        """The key at which the first query stands."""
        return self.keys.shape[1] - self.queries.shape[1]

    def mask(self) -> Bool[Array, "B T S"]:
        """All pairs."""
        index = jnp.broadcast_to(jnp.arange(self.queries.shape[1])[None], self.queries.shape)
        return self.rows((jnp.asarray(self.queries), index))

    def rows(self, queries: tuple[Int[Array, "B b"], Int[Array, "B b"]]) -> Bool[Array, "B b S"]:
        """Those of some queries, given their segments and places."""
        segments, index = queries
        same = segments[:, :, None] == self.keys[:, None]
        if not self.causal:
            return same
        return same & (jnp.arange(self.keys.shape[1])[None, None] <= index[:, :, None] + self.offset)


def attention(
    q: Float[Array, "B T heads H"],
    k: Float[Array, "B S kv_heads H"],
    v: Float[Array, "B S kv_heads H"],
    mask: Bool[AnyArray, " B #T S"] | Segments,
    backend: str = "xla",
) -> Float[Array, "B T heads H"]:
    """Grouped-query attention; softmax in float32.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: true where a query may attend to a key, or segments.
        backend: one of `BACKENDS`, which are equal but for rounding. Only "xla" takes a mask that is an array.
    """
    if backend == "splash":
        return splash_attention(q, k, v, mask.queries, mask.keys, causal=mask.causal)
    if backend == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, mask=mask.mask()[:, None], implementation="cudnn")
    return _in_blocks(q, k, v, mask)


def _in_blocks(q, k, v, mask):
    """By XLA; the backward pass makes the scores again.

    More than `QUERY_BLOCK` queries go through in equal blocks, so that [B, heads, block, S] is the largest array. Rows
    of a softmax are independent, so the result is the same. A query without any key gets the mean of the values, a
    finite number that nobody reads.
    """
    length = q.shape[1]
    count = -(-length // QUERY_BLOCK)
    rows, mask_of = _rows(mask, q.shape[:2])

    def attend(block):
        return _attend(block[0], k, v, mask_of(block[1]))

    if count == 1:
        return jax.checkpoint(attend, prevent_cse=False)((q, rows))
    return map_blocks(attend, (q, rows), -(-length // count))


def _rows(mask: jax.Array | Segments, shape: tuple[int, int]) -> tuple[Any, Callable[[Any], jax.Array]]:
    """What says of each query to what it may attend, [B, T, ...], and the function that makes masks of it."""
    if isinstance(mask, Segments):
        index = jnp.broadcast_to(jnp.arange(shape[1])[None], shape)
        return (jnp.asarray(mask.queries), index), mask.rows
    return jnp.broadcast_to(mask, (*shape, mask.shape[2])), lambda rows: rows


def check_backend(backend: str, platform: str) -> None:
    """Raises UserError unless devices of a platform have the backend, which `config.model.attention` names."""
    if platform not in BACKENDS[backend]:
        there = ", ".join(name for name, platforms in BACKENDS.items() if platform in platforms)
        raise UserError(f"config.model.attention = {backend!r}: not there on {platform} devices; set it to {there}.")


def causal_mask(valid: Bool[AnyArray, "B T"]) -> Bool[Array, "B T T"]:
    """What each token of a row may attend to: itself and what stands before it, padding (not valid) left out."""
    length = valid.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & valid[:, None, :]


def packed_segments(segment_ids: Int[AnyArray, "B T"]) -> Segments:
    """What each token of a packed row may attend to: itself and what stands before it in its segment; -1 is padding.

    Segments 0 0 1 1 and a padding token:

        1 0 0 0 0
        1 1 0 0 0
        0 0 1 0 0
        0 0 1 1 0
        0 0 0 0 1
    """
    return Segments(segment_ids, segment_ids, causal=True)


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
