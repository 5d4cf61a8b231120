"""The tokens that many prompts begin with: their keys and values are computed once, held once, and read by all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from perception_r1_jax.models.quantized import Int8, quantize
from perception_r1_jax.records import Leaf
from perception_r1_jax.sharding import constrain

AXES = ("kv_heads", None, "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """k, v: for each layer an array [kv_heads, P, H], or such an array as `Int8`. Every shard of a batch has it."""

    k: tuple[Leaf, ...]
    v: tuple[Leaf, ...]

    @classmethod
    def of(
        cls, kept: Sequence[tuple[Float[Array, "1 P kv_heads H"], Float[Array, "1 P kv_heads H"]]], dtype: DTypeLike
    ) -> Prefix:
        """From the keys and values of each layer that one row gave; kept as `Int8` with dtype int8."""

        def entry(x):
            x = jnp.swapaxes(x[0], 0, 1)
            x = quantize(x) if dtype == jnp.int8 else x.astype(dtype)
            return jax.tree.map(lambda leaf: constrain(leaf, AXES[: leaf.ndim]), x)

        return cls(*(tuple(map(entry, layers)) for layers in zip(*kept)))

    @property
    def length(self) -> int:
        """P."""
        return self.k[0].shape[1]

    def layer(self, index: int, dtype: DTypeLike) -> tuple[Float[Array, "kv_heads P H"], Float[Array, "kv_heads P H"]]:
        """Keys and values of a layer as floats."""
        return tuple(x.floats(dtype) if isinstance(x, Int8) else x for x in (self.k[index], self.v[index]))
