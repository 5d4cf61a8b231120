"""Long sequences through a function a block at a time, so that what it makes of a block is all that is ever held."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

SPANS = 4
"""A causal row is cut into so many spans, each worked out with what stands before its end alone: of the scores above
the diagonal, which nobody sees, four leave three quarters out."""


def map_spans(function: Callable[[int, int], jax.Array], length: int, size: int) -> jax.Array:
    """Joins what `function` gives for the positions from one to another, [B, size, ...], to an array [B, T, ...].

    Args:
        function: from a span's start and end.
        length: T.
        size: positions of a span; the last has what is left.
    """
    return jnp.concatenate([function(start, min(start + size, length)) for start in range(0, length, size)], axis=1)


def map_blocks(function: Callable[[Any], Any], xs: Any, size: int) -> Any:
    """Applies `function` to blocks of `size` positions, and again to each in the backward pass.

    Args:
        function: from arrays [B, size, ...] to arrays [B, size, ...], position by position.
        xs: a tree of arrays [B, T, ...]; the last block is filled up with zeros.
        size: positions of a block.

    Returns:
        What the function gives, joined to arrays [B, T, ...].
    """
    length = jax.tree.leaves(xs)[0].shape[1]
    # The map already keeps XLA from merging the recomputation with the forward pass.
    step = jax.checkpoint(function, prevent_cse=False)
    return join_blocks(jax.lax.map(step, split_blocks(xs, size)), length)


def split_blocks(xs: Any, size: int) -> Any:
    """A tree of arrays [B, T, ...] -> [blocks, B, size, ...], the last block filled up with zeros."""
    return jax.tree.map(lambda x: _split(x, size), xs)


def join_blocks(blocks: Any, length: int) -> Any:
    """A tree of arrays [blocks, B, size, ...] -> [B, length, ...], without what filled the last block up."""
    return jax.tree.map(lambda x: _join(x)[:, :length], blocks)


def _split(x, size):
    x = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _join(x):
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])
