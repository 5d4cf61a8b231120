"""Attention over whole sequences, behind one function; a decoding step has its own (`cached_attention`)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from perception_r1_jax.errors import UserError
from perception_r1_jax.models.blocks import SPANS, map_spans
from perception_r1_jax.models.softmax_blocks import attend_in_blocks
from perception_r1_jax.models.splash import splash_attention
from perception_r1_jax.records import AnyArray

BACKENDS = {"xla": ("cpu", "gpu", "tpu"), "cudnn": ("gpu",), "splash": ("tpu",)}
"""Who computes attention, and the platforms that have it."""

LEAST = jnp.finfo(jnp.float32).min
"""The score of what may not be attended to."""

QUERY_BLOCK = 1024
"""The most queries whose scores are held at a time."""

SPAN_QUERIES = 256
"""The fewest queries of a span of a causal row."""


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

    def span(self, start: int, end: int) -> Segments:
        """Those of the queries from `start` to `end`, and of the keys up to the last of them."""
        return Segments(self.queries[:, start:end], self.keys[:, : self.offset + end], self.causal)

    def mask(self) -> Bool[Array, "B T S"]:
        """All pairs."""
        index = jnp.broadcast_to(jnp.arange(self.queries.shape[1])[None], self.queries.shape)
        return segment_mask((jnp.asarray(self.queries), index), self.keys, causal=self.causal, offset=self.offset)


def segment_mask(
    queries: tuple[Int[Array, "B b"], Int[Array, "B b"]], keys: Int[AnyArray, "B S"], *, causal: bool, offset: int
) -> Bool[Array, "B b S"]:
    """Rows of `Segments.mask`, given the segments and places of these queries."""
    segments, index = queries
    same = segments[:, :, None] == keys[:, None]
    if not causal:
        return same
    return same & (jnp.arange(keys.shape[1])[None, None] <= index[:, :, None] + offset)


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
    if isinstance(mask, Segments) and mask.causal:
        return _in_spans(q, k, v, mask)
    return _in_blocks(q, k, v, mask)


def _in_spans(q, k, v, segments):
    """Causal attention by XLA."""
    length = q.shape[1]
    size = -(-length // max(1, min(SPANS, length // SPAN_QUERIES)))

    def span(start, end):
        seen = segments.span(start, end)
        k_seen, v_seen = (x[:, : seen.keys.shape[1]] for x in (k, v))
        return _in_blocks(q[:, start:end], k_seen, v_seen, seen)

    return map_spans(span, length, size)


def _in_blocks(q, k, v, mask):
    """By XLA; the backward pass makes the scores again.

    More than `QUERY_BLOCK` queries go through in equal blocks, so that [B, heads, block, S] is the largest array. Rows
    of a softmax are independent, so the result is the same. A query without any key gets the mean of the values, a
    finite number that nobody reads.
    """
    n, length = q.shape[:2]
    size = -(-length // -(-length // QUERY_BLOCK))
    if isinstance(mask, Segments):
        index = jnp.broadcast_to(jnp.arange(length)[None], (n, length))
        rows, seen = (jnp.asarray(mask.queries), index), jnp.asarray(mask.keys)
        of_block = functools.partial(segment_mask, causal=mask.causal, offset=mask.offset)
    else:
        rows, seen, of_block = jnp.broadcast_to(mask, (n, length, mask.shape[2])), None, _its_rows
    return attend_in_blocks(functools.partial(_attend, of_block), size, q, rows, (k, v), seen)


def _its_rows(rows, seen):
    """Of a mask that is an array."""
    return rows


def check_backend(backend: str, platform: str) -> None:
    """Raises UserError unless devices of a platform have the backend, which `config.model.attention` names."""
    if platform not in BACKENDS[backend]:
        there = ", ".join(name for name, platforms in BACKENDS.items() if platform in platforms)
        raise UserError(f"config.model.attention = {backend!r}: not there on {platform} devices; set it to {there}.")


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


def _attend(mask_of, q, rows, keys, seen, top):
    """`softmax_blocks.Attend`.

    The queries of all heads that share a key head stand in one run: every product is then one of plain matrices.
    """
    k, v = (jnp.moveaxis(x, 1, 2) for x in keys)
    n, b, heads, size = q.shape
    kv_heads = k.shape[1]
    by_head = (n, kv_heads, heads // kv_heads, b)
    runs = jnp.moveaxis(q.reshape(n, b, *by_head[1:3], size), 1, 3).reshape(n, kv_heads, -1, size)
    scores = jnp.einsum("bkqh,bksh->bkqs", runs, k, preferred_element_type=jnp.float32) * size**-0.5
    scores = jnp.where(mask_of(rows, seen)[:, None, None], scores.reshape(*by_head, -1), LEAST)
    top = scores.max(-1) if top is None else jnp.moveaxis(top.reshape(n, b, *by_head[1:3]), 1, 3)
    weights = jnp.exp(scores - top[..., None])
    by_run = weights.reshape(n, kv_heads, -1, weights.shape[-1]).astype(v.dtype)
    sums = jnp.einsum("bkqs,bksh->bkqh", by_run, v, preferred_element_type=jnp.float32)
    return tuple(_by_token(x) for x in (sums.reshape(*by_head, size), weights.sum(-1), top))


def _by_token(x):
    """[B, kv_heads, heads / kv_heads, T, ...] -> [B, T, heads, ...]."""
    x = jnp.moveaxis(x, 3, 1)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])
