"""Qwen2.5-VL's vision tower (arXiv 2502.13923, section 2.1), on patches laid out window by window.

The host has put the patches of each 112-pixel window into 64 slots (`records.VisionLayout`), so window
attention is a batch over windows, and full attention one over all slots of a prompt with a mask by picture.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from perception_r1_jax.models.attention import Segments, attention
from perception_r1_jax.models.config import VisionConfig
from perception_r1_jax.models.layers import GatedMLP, Linear, RMSNorm, layer_flags, scan_layers, stack_layers
from perception_r1_jax.models.rope import Angles, rotate, vision_angles
from perception_r1_jax.records import MERGE_UNIT, AnyArray
from perception_r1_jax.sharding import constrain


class VisionAttention(nnx.Module):
    """Multi-head attention, within windows or within pictures."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        hidden, heads = config.hidden_size, config.num_heads
        head = hidden // heads
        self.qkv = Linear((hidden, 3, heads, head), ("embed", None, "heads", "head_dim"), bias=True, rngs=rngs)
        self.o = Linear((heads, head, hidden), ("heads", "head_dim", "embed"), contract=2, bias=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "N W 64 hidden"],
        angles: Angles,
        valid: Bool[AnyArray, "N W 64"],
        image_ids: Int[AnyArray, "N W"],
        full: Bool[Array, ""],
        backend: str = "xla",
    ) -> Float[Array, "N W 64 hidden"]:
        q, k, v = jnp.moveaxis(self.qkv(x), 3, 0)
        q, k = rotate(q, angles), rotate(k, angles)
        pictures = functools.partial(_attend_pictures, backend=backend)
        out = jax.lax.cond(full, pictures, _attend_windows, q, k, v, valid, image_ids)
        return self.o(out)


def _attend_windows(q, k, v, valid, image_ids):
    """Each window by itself: 64 keys, fewer than any other backend takes at a time."""
    n, w, slots, heads, head = q.shape
    q, k, v = (x.reshape(n * w, slots, heads, head) for x in (q, k, v))
    slot = jnp.where(valid, 0, -1).reshape(n * w, slots)
    return attention(q, k, v, Segments(slot, slot, causal=False)).reshape(n, w, slots, heads, head)


def _attend_pictures(q, k, v, valid, image_ids, backend):
    """Each picture by itself."""
    n, w, slots, heads, head = q.shape
    q, k, v = (x.reshape(n, w * slots, heads, head) for x in (q, k, v))
    picture = jnp.where(valid, image_ids[:, :, None], -1).reshape(n, w * slots)
    return attention(q, k, v, Segments(picture, picture, causal=False), backend).reshape(n, w, slots, heads, head)


class VisionLayer(nnx.Module):
    """A pre-norm block."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = VisionAttention(config, rngs=rngs)
        self.norm2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, bias=True, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "N W 64 hidden"],
        angles: Angles,
        valid: Bool[AnyArray, "N W 64"],
        image_ids: Int[AnyArray, "N W"],
        full: Bool[Array, ""],
        backend: str = "xla",
    ) -> Float[Array, "N W 64 hidden"]:
        x = x + self.attention(self.norm1(x), angles, valid, image_ids, full, backend)
        return x + self.mlp(self.norm2(x))


class Merger(nnx.Module):
    """Turns each 2 x 2 merge unit into one image token of the decoder's width."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        wide = config.hidden_size * MERGE_UNIT
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.fc1 = Linear((wide, wide), ("embed", "mlp"), bias=True, rngs=rngs)
        self.fc2 = Linear((wide, config.out_hidden_size), ("mlp", "embed"), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "N W 64 hidden"]) -> Float[Array, "N units D"]:
        n, w, slots, hidden = x.shape
        units = self.norm(x).reshape(n, w * slots // MERGE_UNIT, MERGE_UNIT * hidden)
        return self.fc2(jax.nn.gelu(self.fc1(units), approximate=False))


class VisionTower(nnx.Module):
    """Patch embedding, stacked layers, merger."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.patch_embed = Linear((config.patch_dim, config.hidden_size), ("patch", "embed"), rngs=rngs)
        self.layers = stack_layers(lambda rngs: VisionLayer(config, rngs=rngs), config.depth, rngs)
        self.merger = Merger(config, rngs=rngs)

    def __call__(
        self,
        patches: Float[AnyArray, "N W 64 P"],
        patch_positions: Int[AnyArray, "N W 64 2"],
        valid: Bool[AnyArray, "N W 64"],
        image_ids: Int[AnyArray, "N W"],
        remat: str = "none",
        backend: str = "xla",
    ) -> Float[Array, "N units D"]:
        """Image features by merge-unit slot, [N, 16 W, D]."""
        config = self.config
        angles = vision_angles(patch_positions, config.hidden_size // config.num_heads, config.rope_theta)
        x = self.patch_embed(jnp.asarray(patches, self.patch_embed.kernel.dtype))

        def body(layer, x, full):
            return constrain(layer(x, angles, valid, image_ids, full, backend), ("batch", None, None, None)), None

        is_full = jnp.asarray(layer_flags(config.depth, config.full_attention_layers))
        x, _ = scan_layers(self.layers, body, x, is_full, remat)
        return self.merger(x)
