"""Cuts a batch into micro-batches [N, G, ...] -> [prompt chunks, sample chunks, n, g, ...] and puts results together.

Chunks take every so-many-th row, not neighbouring rows. A device holds neighbouring rows of the batch, so every
micro-batch has its part of the rows on every device already, and nothing moves.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from perception_r1_jax.config import check_divides
from perception_r1_jax.records import AnyArray


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """How many prompts and how many responses of each go through the model at a time."""

    prompts: int
    samples: int

    def split_prompts(self, tree: Any) -> Any:
        """[N, ...] -> [N / n, n, ...] for every array."""
        return jax.tree.map(lambda x: split_axis(x, 0, self.prompts, "grpo.micro_batch_prompts"), tree)

    def split_responses(self, tree: Any) -> Any:
        """[N, G, ...] -> [N / n, G / g, n, g, ...] for every array."""

        def split(x):
            return split_axis(
                split_axis(x, 1, self.samples, "grpo.micro_batch_samples"), 1, self.prompts, "grpo.micro_batch_prompts"
            )

        return jax.tree.map(split, tree)

    def join_responses(self, x: jax.Array) -> jax.Array:
        """[N / n, G / g, n, g, ...] -> [N, G, ...]: the way back from `split_responses`."""
        x = jnp.moveaxis(x, (0, 1), (1, 3))
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])


def split_axis(x: AnyArray, axis: int, size: int, name: str) -> AnyArray:
    """Moves the chunks of dimension `axis` to the front: chunk i takes rows i, i + chunks, i + 2 chunks, ...

    Raises:
        UserError: `size`, the config's field `name`, does not divide the dimension.
    """
    total = x.shape[axis]
    check_divides(name, size, total)
    x = x.reshape(*x.shape[:axis], size, total // size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis + 1, 0)
