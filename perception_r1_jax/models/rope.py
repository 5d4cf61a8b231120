"""Rotary position embeddings. Angles are float32 always: in bfloat16 they are off by 0.1 rad at 64 patches."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perception_r1_jax.records import AnyArray


class Angles(NamedTuple):
    """The angles by which the pairs of a head are turned, as their cosines and sines."""

    cos: Float[Array, "*B half"]
    sin: Float[Array, "*B half"]

    @classmethod
    def of(cls, radians: Float[Array, "*B half"]) -> Angles:
        """Of angles in radians."""
        return cls(jnp.cos(radians), jnp.sin(radians))


def inverse_frequencies(dim: int, theta: float) -> Float[np.ndarray, " half"]:
    """Frequencies of dim / 2 pairs, float32: theta^(-2i / dim) (RoFormer, arXiv 2104.09864, section 3.2.2)."""
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))).astype(np.float32)


def mrope_angles(
    positions: Int[AnyArray, "B 3 T"], head_dim: int, theta: float, section: tuple[int, int, int] | None
) -> Angles:
    """Angles [B, T, half] of multimodal rotary embeddings (Qwen2-VL, arXiv 2409.12191, section 2.1).

    The head_dim / 2 frequencies are dealt out in three runs, `section`, to the temporal, height and width
    position. A text-only model (section None) has equal positions on all axes and uses the first.
    """
    frequencies = inverse_frequencies(head_dim, theta)
    axis_of_frequency = np.zeros(head_dim // 2, np.int32) if section is None else np.repeat(np.arange(3), section)
    chosen = jnp.asarray(positions, jnp.float32)[:, axis_of_frequency, :]  # [B, half, T]
    return Angles.of(chosen.swapaxes(1, 2) * frequencies[None, None, :])


def text_angles(positions: Int[Array, "*B"], head_dim: int, theta: float) -> Angles:
    """`mrope_angles` [*B, half] of text, whose positions are the same on all axes."""
    frequencies = inverse_frequencies(head_dim, theta).reshape((1,) * positions.ndim + (-1,))
    return Angles.of(positions[..., None].astype(jnp.float32) * frequencies)


def vision_angles(patch_positions: Int[AnyArray, "N W 64 2"], head_dim: int, theta: float) -> Angles:
    """Angles [N, W, 64, half] in the vision tower: half of the frequencies turn with the row, half with the column."""
    frequencies = inverse_frequencies(head_dim // 2, theta)
    angles = jnp.asarray(patch_positions, jnp.float32)[..., None] * frequencies[None, None, None, None, :]
    return Angles.of(angles.reshape(*patch_positions.shape[:-1], head_dim // 2))


def rotate(x: Float[Array, "*B heads H"], angles: Angles) -> Float[Array, "*B heads H"]:
    """Turns pairs (i, i + H / 2) of each head by the angles, in float32; returns x's dtype."""
    cos, sin = angles.cos[..., None, :], angles.sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
