"""Keys and values in 8 bits: an integer for each number, and a scale for each token and head."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from perception_r1_jax.records import Leaf

LARGEST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8:
    """values: int8 [..., H]; scales: float32 [...], what one step of the values is worth."""

    values: Leaf
    scales: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the numbers it stands for."""
        return self.values.shape


def quantize(x: Float[Array, "*B H"]) -> Int8:
    """Each vector by its own scale, its largest number at 127; an error is at most half a step."""
    x = x.astype(jnp.float32)
    scales = jnp.maximum(jnp.abs(x).max(-1) / LARGEST, jnp.finfo(jnp.float32).tiny)
    return Int8(jnp.clip(jnp.round(x / scales[..., None]), -LARGEST, LARGEST).astype(jnp.int8), scales)
