"""Numbers in 8 bits with a scale for each run of them: keys and values by token and head, weights by output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from perception_r1_jax.records import AnyArray, Leaf

LARGEST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """values: int8; scales: floats, what a step of the values is worth: the shape without the axes that share one."""

    values: Leaf
    scales: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers it stands for."""
        return self.values.shape

    def floats(self, dtype: DTypeLike) -> jax.Array:
        """The numbers it stands for, where those of the last axis share a scale."""
        return (self.values.astype(jnp.float32) * self.scales[..., None].astype(jnp.float32)).astype(dtype)


def quantize(x: jax.Array, axes: Sequence[int] = (-1,), dtype: DTypeLike = jnp.float32) -> Int8:
    """Each run along `axes` by its own scale, its largest number at 127; an error is at most half a step.

    Args:
        x: the numbers.
        axes: those that share a scale.
        dtype: of the scales, which are rounded before they are used.
    """
    x = x.astype(jnp.float32)
    axes = tuple(axes)
    scales = jnp.maximum(jnp.abs(x).max(axes) / LARGEST, jnp.finfo(jnp.float32).tiny).astype(dtype)
    steps = x / jnp.expand_dims(scales.astype(jnp.float32), axes)
    return Int8(jnp.clip(jnp.round(steps), -LARGEST, LARGEST).astype(jnp.int8), scales)


def quantize_weight(x: jax.Array, summed: Sequence[int], dtype: DTypeLike) -> jax.Array | Int8:
    """A matrix whose products sum over these axes in 8 bits, a scale for each output; anything else in `dtype`."""
    return quantize(x, summed, dtype) if summed else x.astype(dtype)


def contract(x: jax.Array, matrix: jax.Array | Int8, count: int) -> jax.Array:
    """The product of x [..., in...] and a matrix [in..., out...] with `count` input dimensions, in x's dtype.

    A matrix in 8 bits is never made one of floats: its scales, one for each output, are for the product.
    """
    dimensions = ((tuple(range(x.ndim - count, x.ndim)), tuple(range(count))), ((), ()))
    if not isinstance(matrix, Int8):
        return jax.lax.dot_general(x, matrix, dimensions)
    y = jax.lax.dot_general(x, _as_floats(matrix, x), dimensions)
    return _scaled(y, matrix.scales).astype(x.dtype)


def look_up(table: jax.Array | Int8, indices: Int[AnyArray, "*B"]) -> Float[Array, "*B D"]:
    """Rows of a table [V, D]; of one in 8 bits in the dtype of its scales, one for each row."""
    if not isinstance(table, Int8):
        return table[indices]
    return Int8(table.values[indices], table.scales[indices]).floats(table.scales.dtype)


def contract_rows(x: Float[Array, "*B D"], table: jax.Array | Int8) -> Float[Array, "*B V"]:
    """The product of x and each row of a table [V, D], float32."""
    values = _as_floats(table, x) if isinstance(table, Int8) else table
    y = jnp.einsum("...d,vd->...v", x, values, preferred_element_type=jnp.float32)
    return _scaled(y, table.scales) if isinstance(table, Int8) else y


def _as_floats(matrix: Int8, x: jax.Array) -> jax.Array:
    """The values in x's dtype, for a product with x. Tied to x, so that no loop over products keeps them as floats."""
    values, _ = jax.lax.optimization_barrier((matrix.values, x))
    return values.astype(x.dtype)


def _scaled(y: jax.Array, scales: jax.Array) -> jax.Array:
    return y.astype(jnp.float32) * jnp.broadcast_to(scales.astype(jnp.float32), y.shape)
