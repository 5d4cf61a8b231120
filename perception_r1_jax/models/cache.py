"""Keys and values kept for decoding: a prompt's once per prompt, a response's once per sample."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from perception_r1_jax.models.config import ModelConfig
from perception_r1_jax.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PromptCache:
    """k, v [layers, N, L, kv_heads, H] and valid bool [N, L]."""

    k: jax.Array
    v: jax.Array
    valid: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ResponseCache:
    """k, v [layers, N, G, C, kv_heads, H]; slot c holds the response's token c."""

    k: jax.Array
    v: jax.Array

    @classmethod
    def empty(cls, config: ModelConfig, n: int, g: int, capacity: int, dtype: DTypeLike) -> ResponseCache:
        """Room for `capacity` tokens of each of n x g responses."""
        shape = (config.num_layers, n, g, capacity, config.num_kv_heads, config.head_dim)
        zeros = constrain(jnp.zeros(shape, dtype), ("layers", "batch", None, None, "kv_heads", "head_dim"))
        return cls(zeros, zeros)

    @property
    def capacity(self) -> int:
        """C."""
        return self.k.shape[3]

    def write(
        self,
        layer: Int[Array, ""],
        step: Int[Array, ""],
        k: Float[Array, "N G kv_heads H"],
        v: Float[Array, "N G kv_heads H"],
    ) -> ResponseCache:
        """The cache with the keys and values of one layer at token `step`."""

        def put(buffer, new):
            return jax.lax.dynamic_update_slice(buffer, new[None, :, :, None], (layer, 0, 0, step, 0, 0))

        return ResponseCache(put(self.k, k), put(self.v, v))

    def layer(self, index: Int[Array, ""]) -> tuple[Float[Array, "N G C kv_heads H"], Float[Array, "N G C kv_heads H"]]:
        """Keys and values of one layer."""
        return tuple(jax.lax.dynamic_index_in_dim(x, index, keepdims=False) for x in (self.k, self.v))
