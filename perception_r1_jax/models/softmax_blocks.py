"""Softmax attention a block of queries at a time, whose backward pass makes the scores again but none of their sums.

The forward pass keeps of each query the largest score and the sum of the exponentials, and of the scores nothing; with
both the backward pass has the weights again in one step, and what the softmax's gradient sums over the keys is the
product of the output with its gradient (FlashAttention, arXiv 2205.14135, section 3.1 and appendix B.4).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from perception_r1_jax.models.blocks import join_blocks, split_blocks

Attend = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]
"""`attend(q, rows, keys, seen, top)`: for queries [B, b, ..., H] the float32 sums of the values, weighted by the
exponential of the score less `top`, [B, b, ..., H]; the sums of these weights [B, b, ...]; and `top` itself, which is
the largest score where it is None. A module's function, or a partial one of values that are no arrays."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attend_in_blocks(
    attend: Attend, size: int, q: Float[Array, "B T *R H"], rows: Any, keys: Any, seen: Any
) -> Float[Array, "B T *R H"]:
    """The values' weighted means, in the queries' dtype.

    Args:
        attend: makes a block's scores and weighs the values with them.
        size: queries of a row whose scores are held at a time.
        q: queries.
        rows: tree of arrays [B, T, ...] that say to what each query may attend.
        keys: tree of keys and values.
        seen: tree of arrays that say by whom the keys may be seen.
    """
    return _forward(attend, size, q, rows, keys, seen)[0]


def _forward(attend, size, q, rows, keys, seen):
    def of_block(block):
        sums, total, top = attend(*block, keys, seen, None)
        return (sums / total[..., None]).astype(q.dtype), total, top

    if size == q.shape[1]:
        out, total, top = of_block((q, rows))
    else:
        blocks = jax.lax.map(of_block, split_blocks((q, rows), size))
        out, total, top = join_blocks(blocks, q.shape[1])
    return out, (q, rows, keys, seen, out, total, top)


def _backward(attend, size, kept, out_gradient):
    q, rows, keys, seen, out, total, top = kept
    wide = out_gradient.astype(jnp.float32)
    of_sums = wide / total[..., None]
    of_total = -jnp.sum(of_sums * out.astype(jnp.float32), axis=-1)

    def of_block(keys_gradient, block):
        q, rows, top, *gradients = block
        _, pull = jax.vjp(lambda q, keys: attend(q, rows, keys, seen, top)[:2], q, keys)
        of_q, of_keys = pull(tuple(gradients))
        return jax.tree.map(lambda total, x: total + x.astype(jnp.float32), keys_gradient, of_keys), of_q

    inputs = (q, rows, top, of_sums, of_total)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), keys)
    if size == q.shape[1]:
        of_keys, of_q = of_block(zeros, inputs)
    else:
        of_keys, blocks = jax.lax.scan(of_block, zeros, split_blocks(inputs, size))
        of_q = join_blocks(blocks, q.shape[1])
    return of_q, None, jax.tree.map(lambda total, x: total.astype(x.dtype), of_keys, keys), None


attend_in_blocks.defvjp(_forward, _backward)
