"""Attention of a decoding step: to the prompt, to the pages of the own response, and to what was fed since.

The parts are computed apart and merged by their log-sum-exp in float32, so each key is read where it lies: a prompt's
once for all its responses, and a response's no longer than it is. What all prompts begin with is one more part, read
once for all.

Each shard has B slots, one sequence in each. Prompts and pages stand in pools in any order, and tables say whose they
are. Pools are read in blocks, as many as are in use: how much that is changes from step to step, the program does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from perception_r1_jax.models.attention import LEAST
from perception_r1_jax.models.quantized import Int8
from perception_r1_jax.records import Leaf


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tables:
    """Who attends to what.

    Attributes:
        lengths: int32 [D, P], tokens of each prompt of the pool; 0 where there is none.
        cells: int32 [D, B], the place of each slot among the P x G responses to the prompts.
        slots: int32 [D, P, G], the slot of each of these responses; any slot where it has none.
        owners: int32 [D, T], the slot that each page belongs to; B where it is free.
        prompt_blocks: int32, how many blocks of prompts are in use.
        page_blocks: int32, how many blocks of pages are in use.
        prompt_block: prompts in a block (static); it divides P.
        page_block: pages in a block (static); it divides T.
    """

    lengths: Leaf
    cells: Leaf
    slots: Leaf
    owners: Leaf
    prompt_blocks: Leaf
    page_blocks: Leaf
    prompt_block: int = dataclasses.field(metadata={"static": True})
    page_block: int = dataclasses.field(metadata={"static": True})


class _Part(NamedTuple):
    """Attention to some of the keys: sum of exp(score - top) x value, the sum without the value, and the top score."""

    out: Float[Array, "rows kv_heads r H"]
    total: Float[Array, "rows kv_heads r"]
    top: Float[Array, "rows kv_heads r"]


def cached_attention(
    q: Float[Array, "D B heads H"],
    prompt: tuple[Leaf, Leaf],
    pages: tuple[Leaf, Leaf],
    recent: tuple[Float[Array, "rows kv_heads K H"], Float[Array, "rows kv_heads K H"]],
    step: Int[Array, ""],
    tables: Tables,
    shared: tuple[Leaf, Leaf] | None = None,
) -> Float[Array, "D B heads H"]:
    """One decoding step of one layer.

    Args:
        q: queries of the tokens that are fed.
        prompt: keys and values of the prompts, each [D, P, kv_heads, L, H], as floats or `Int8`.
        pages: those of full pages, each [D, T, kv_heads, K, H], as floats or `Int8`.
        recent: those of the tokens since, `step` + 1 of them, shards joined; the others' values do not matter.
        step: place of this token among the recent ones.
        tables: whose prompts and pages are whose.
        shared: keys and values of what all prompts begin with, each [kv_heads, P, H], as floats or `Int8`; the pool
            holds the rest of them.
    """
    rows, kv_heads, span, size = recent[0].shape
    seen = jnp.broadcast_to(jnp.arange(span) <= step, (rows, span))
    fresh = _attend(q.reshape(rows, kv_heads, -1, size), *recent, seen)
    fresh = jax.tree.map(lambda x: x.reshape(*q.shape[:2], *x.shape[1:]), fresh)

    def attend(q, found, prompt, pages, lengths, cells, slots, owners):
        grouped = q.reshape(q.shape[0], kv_heads, -1, size)
        if shared is not None:
            found = _merge(found, _of_shared(grouped, *shared))

        def add_prompts(start, found):
            take = _taker(start, tables.prompt_block)
            part = _of_prompts(grouped, take(prompt), take(lengths), cells - start * slots.shape[1], take(slots))
            return _merge(found, part)

        def add_pages(start, found):
            take = _taker(start, tables.page_block)
            return _merge(found, _of_pages(grouped, take(pages), take(owners)))

        found = _over_blocks(add_prompts, tables.prompt_blocks, tables.prompt_block, lengths.size, found)
        found = _over_blocks(add_pages, tables.page_blocks, tables.page_block, owners.size, found)
        return (found.out / found.total[..., None]).reshape(q.shape).astype(q.dtype)

    tabled = (tables.lengths, tables.cells, tables.slots, tables.owners)
    return jax.vmap(attend)(q, fresh, prompt, pages, *tabled)


def _over_blocks(add: Callable, count: jax.Array, block: int, size: int, found: _Part) -> _Part:
    if size == block:  # one block: read as it lies, not sliced
        return add(0, found)
    return jax.lax.fori_loop(0, count, lambda i, found: add(i * block, found), found)


def _taker(start: jax.Array | int, block: int) -> Callable:
    return lambda tree: jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, block), tree)


def _of_prompts(q, prompt, lengths, cells, slots) -> _Part:
    """Each slot's attention to its prompt, where that is among these; `cells` count from the first of them."""
    block, samples = slots.shape
    kv_heads, r, size = q.shape[1:]
    by_prompt = jnp.moveaxis(q[slots], 1, 2).reshape(block, kv_heads, samples * r, size)
    part = _attend(by_prompt, *prompt, jnp.arange(prompt[0].shape[2])[None] < lengths[:, None])

    def by_slot(x):
        x = jnp.moveaxis(x.reshape(block, kv_heads, samples, r, *x.shape[3:]), 2, 1)
        return jnp.take(x.reshape(block * samples, kv_heads, r, *x.shape[4:]), cells, axis=0, mode="clip")

    part = jax.tree.map(by_slot, part)
    here = ((cells >= 0) & (cells < block * samples))[:, None, None]
    # Nothing of another's, times 0, where that is NaN.
    return _Part(
        jnp.where(here[..., None], part.out, 0.0), jnp.where(here, part.total, 0.0), jnp.where(here, part.top, LEAST)
    )


def _of_shared(q, k, v) -> _Part:
    """Each slot's attention to keys and values [kv_heads, P, H] that are everybody's: one product for all slots."""
    by_head = jnp.moveaxis(q, 0, 1).reshape(1, q.shape[1], -1, q.shape[-1])
    one_row = jax.tree.map(lambda x: x[None], (k, v))
    part = _attend(by_head, *one_row, jnp.ones((1, k.shape[1]), bool))

    def by_slot(x):
        return jnp.moveaxis(x.reshape(q.shape[1], q.shape[0], q.shape[2], *x.shape[3:]), 1, 0)

    return jax.tree.map(by_slot, part)


def _of_pages(q, pages, owners) -> _Part:
    """Each slot's attention to those of these pages that belong to it."""
    count = q.shape[0]
    mask = jnp.broadcast_to((owners < count)[:, None], (owners.size, pages[0].shape[2]))
    part = _attend(jnp.take(q, owners, axis=0, mode="clip"), *pages, mask)
    top = jnp.full(q.shape[:3], LEAST).at[owners].max(part.top, mode="drop")
    scale = jnp.exp(part.top - jnp.take(top, owners, axis=0, mode="clip"))
    # Sums by owner as one product: in an order that does not vary, unlike a scatter's on a GPU.
    own = (owners[None, :] == jnp.arange(count)[:, None]).astype(jnp.float32)

    def by_slot(x):
        # A sequence whose numbers are broken is known by its top; times 0 they would reach the others.
        return jnp.tensordot(own, jnp.where(jnp.isfinite(x), x, 0.0), axes=1, precision=jax.lax.Precision.HIGHEST)

    return _Part(by_slot(part.out * scale[..., None]), by_slot(part.total * scale), top)


def _attend(q, k, v, mask) -> _Part:
    """Of rows [rows, kv_heads, r, H] to keys and values [rows, kv_heads, S, H] where mask [rows, S] is true."""
    mask = mask[:, None, None]
    (k, k_scales), (v, v_scales) = _as_floats(k, q.dtype), _as_floats(v, q.dtype)
    # Keys times queries: the few queries are turned round, not the many keys.
    scores = jnp.einsum("nksh,nkrh->nksr", k, q, preferred_element_type=jnp.float32).swapaxes(2, 3)
    scores *= q.shape[-1] ** -0.5
    scores = jnp.where(mask, scores * k_scales, LEAST)
    top = scores.max(-1)
    weights = jnp.where(mask, jnp.exp(scores - top[..., None]), 0.0)
    scaled = (weights * v_scales).astype(v.dtype)
    out = jnp.einsum("nkrs,nksh->nkrh", scaled, v, preferred_element_type=jnp.float32)
    return _Part(out, weights.sum(-1), top)


def _as_floats(x, dtype):
    """Keys or values to multiply with, and the factor [rows, kv_heads, 1, S] of each token, taken out of it."""
    if isinstance(x, Int8):
        return x.values.astype(dtype), x.scales[:, :, None]
    return x, jnp.ones((*x.shape[:2], 1, x.shape[2]), jnp.float32)


def _merge(a: _Part, b: _Part) -> _Part:
    top = jnp.maximum(a.top, b.top)
    of_a, of_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    return _Part(
        a.out * of_a[..., None] + b.out * of_b[..., None],
        a.total * of_a + b.total * of_b,
        top,
    )
