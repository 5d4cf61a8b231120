"""Groups without advantages, left out before the forward pass.

A group whose advantages are all zero adds nothing to the gradient of a policy loss; its tokens still count in the
weights of the others (`aggregation.token_weights`). The host puts such groups into micro-batches of their own, and the
step does not visit these. No shape depends on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from perception_r1_jax.grpo.micro_batches import MicroBatches
from perception_r1_jax.records import TrainBatch


def flat_last(flat: Bool[np.ndarray, " N"], updates: int, chunk: int) -> Int[np.ndarray, " N"]:
    """An order of a batch's groups in which the flat ones fill micro-batches of their own.

    Each update's share of the batch, one after the other, gets as many flat groups as the others. Within a share
    micro-batch i of n takes rows i, i + n, i + 2n, ... (`micro_batches.split_axis`).

    Args:
        flat: which groups have no advantages.
        updates: shares of the batch.
        chunk: groups in a micro-batch.
    """
    ranked = np.argsort(flat, kind="stable").reshape(-1, updates).T  # a row for each share, its flat groups last
    return ranked.reshape(updates, -1, chunk).transpose(0, 2, 1).ravel()


def live_chunks(micro_batches: MicroBatches, batch: TrainBatch) -> Bool[Array, " K"]:
    """Which chunks of prompts (`MicroBatches.split_prompts`) have a response with an advantage and tokens."""
    counts = (batch.advantages != 0) & jnp.any(batch.mask, axis=-1)
    return jnp.any(micro_batches.split_responses(counts), axis=(1, 2, 3))


def scan_live(body: Callable, carry: Any, xs: Any, live: Bool[Array, " K"]) -> tuple[Any, Any]:
    """`jax.lax.scan`, but elements of `xs` that are not live are not visited: their outputs are zeros.

    A loop of as many rounds as there are live elements needs no more memory than the scan; a branch within the scan
    would keep a copy of what goes into it, parameters and gradients.
    """
    order = jnp.argsort(~live)

    def visit(round, state):
        carry, outputs = state
        place = order[round]
        carry, output = body(carry, jax.tree.map(lambda x: x[place], xs))
        return carry, jax.tree.map(lambda all, one: all.at[place].set(one), outputs, output)

    shapes = jax.eval_shape(body, carry, jax.tree.map(lambda x: x[0], xs))[1]
    outputs = jax.tree.map(lambda x: jnp.zeros((*live.shape, *x.shape), x.dtype), shapes)
    return jax.lax.fori_loop(0, jnp.sum(live), visit, (carry, outputs))
