"""Keys and values kept for decoding.

One record serves them all. D shards of the batch stand side by side; what a sequence needs lies in its own shard.

    cache      an entry is                                  tokens of an entry
    prompts    a prompt, whatever the number of responses   L
    pages      a stretch of one response                    the page's length
    recent     what a sequence has fed since its last page  the page's length
    rows       a prompt and what is fed behind it           L and the room behind; each row is a shard by itself

The recent ones are written in every step. Their shards and entries are one axis meanwhile (`joined`): with an axis of
one shard beside it, XLA on a CPU writes a buffer twice and copies it four times.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from perception_r1_jax.models.config import ModelConfig
from perception_r1_jax.models.quantized import Int8, quantize
from perception_r1_jax.records import Leaf
from perception_r1_jax.sharding import constrain

AXES = ("batch", None, "kv_heads", None, "head_dim")
JOINED_AXES = ("batch", "kv_heads", None, "head_dim")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KeyValues:
    """k, v: for each layer an array [D, entries, kv_heads, tokens, H], or such an array as `Int8`."""

    k: tuple[Leaf, ...]
    v: tuple[Leaf, ...]

    @classmethod
    def empty(cls, config: ModelConfig, shards: int, entries: int, tokens: int, dtype: DTypeLike) -> KeyValues:
        """Room for so many entries in each shard, zeros; with dtype int8 they are kept as `Int8`."""
        shape = (shards, entries, config.num_kv_heads, tokens, config.head_dim)

        def layer():
            zeros = jnp.zeros(shape, dtype)
            return _constrain(Int8(zeros, jnp.zeros(shape[:-1], jnp.float32)) if dtype == jnp.int8 else zeros)

        def layers():
            return tuple(layer() for _ in range(config.num_layers))

        return cls(k=layers(), v=layers())

    def put(self, entries: Int[Array, "D n"], new: KeyValues) -> KeyValues:
        """The cache with n new entries in each shard; an index past the last entry leaves its own out."""
        write = jax.vmap(lambda old, at, new: old.at[at].set(new, mode="drop"))
        if isinstance(self.k[0], Int8) and not isinstance(new.k[0], Int8):
            new = KeyValues(tuple(map(quantize, new.k)), tuple(map(quantize, new.v)))
        return _constrain(jax.tree.map(lambda old, new: write(old, entries, new), self, new))

    def move(self, sources: Int[Array, "D n"], targets: Int[Array, "D n"]) -> KeyValues:
        """The cache with entries copied to other places; a target past the last entry leaves its own out."""
        take = jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="clip"))
        return self.put(targets, jax.tree.map(lambda x: take(x, sources), self))

    def joined(self) -> KeyValues:
        """A cache of floats with shards and entries as one axis: [D x entries, kv_heads, tokens, H] for each layer."""
        return jax.tree.map(lambda x: constrain(x.reshape(-1, *x.shape[2:]), JOINED_AXES), self)

    def apart(self, shards: int) -> KeyValues:
        """A `joined` cache with so many shards and their entries as two axes again."""
        return _constrain(jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), self))

    def write(
        self, layer: int, index: Int[Array, ""], k: Float[Array, "D B kv_heads H"], v: Float[Array, "D B kv_heads H"]
    ) -> KeyValues:
        """A `joined` cache with one token of each entry, at `index` of one layer."""

        def put(layers, new):
            new = new.reshape(-1, new.shape[2], 1, new.shape[3])
            new = jax.lax.dynamic_update_slice_in_dim(layers[layer], new, index, axis=2)
            return (*layers[:layer], new, *layers[layer + 1 :])

        return KeyValues(put(self.k, k), put(self.v, v))

    def widen(self, tokens: int) -> KeyValues:
        """The cache with room for so many more tokens in each entry, zeros."""
        return jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, tokens), (0, 0)]), self)

    def write_block(
        self, layer: int, start: Int[Array, ""], k: Float[Array, "D S kv_heads H"], v: Float[Array, "D S kv_heads H"]
    ) -> KeyValues:
        """The cache with S tokens of the only entry of each shard, from `start` on, in one layer."""

        def put(layers, new):
            block = jnp.swapaxes(new, 1, 2)[:, None]
            new = jax.lax.dynamic_update_slice_in_dim(layers[layer], block, start, axis=3)
            return (*layers[:layer], new, *layers[layer + 1 :])

        return KeyValues(put(self.k, k), put(self.v, v))


def token_bytes(config: ModelConfig, dtype: DTypeLike) -> int:
    """Bytes that the keys and values of one token take, all layers together; with int8 their scales too."""
    vector = config.head_dim * jnp.dtype(dtype).itemsize + (4 if dtype == jnp.int8 else 0)
    return 2 * config.num_layers * config.num_kv_heads * vector


def _constrain(tree: Any) -> Any:
    return jax.tree.map(lambda x: constrain(x, AXES[: x.ndim]), tree)
