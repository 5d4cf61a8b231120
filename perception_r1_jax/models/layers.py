"""The layers that decoder and vision tower share, and how a stack of them is made and scanned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from perception_r1_jax.models.lora import contract_adapted
from perception_r1_jax.sharding import constrain

_initializer = nnx.initializers.normal(0.02)

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a rematerialised layer keeps for its backward pass, by config name."""


def parameter(
    key: Key[Array, ""], shape: Sequence[int], axes: Sequence[str | None], summed: Sequence[int]
) -> nnx.Param:
    """A float32 matrix with its logical axes, which `sharding.RULES` knows, and those that its product sums over."""
    return nnx.Param(_initializer(key, tuple(shape), jnp.float32), logical_axes=tuple(axes), summed=tuple(summed))


class Linear(nnx.Module):
    """y = x W + b over the last `contract` dimensions of x; W is [in..., out...]."""

    def __init__(
        self,
        shape: Sequence[int],
        axes: Sequence[str | None],
        *,
        contract: int = 1,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.contract = contract
        self.kernel = parameter(rngs.params(), shape, axes, summed=range(contract))
        self.bias = nnx.Param(jnp.zeros(shape[contract:]), logical_axes=tuple(axes[contract:])) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = contract_adapted(x, self.kernel.get_value(), self.contract)
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias[...], y.shape)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, statistics in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size), logical_axes=("embed",))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * jnp.broadcast_to(self.scale[...], x.shape)


class GatedMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, arXiv 2002.05202)."""

    def __init__(self, hidden: int, intermediate: int, *, bias: bool, rngs: nnx.Rngs):
        self.gate = Linear((hidden, intermediate), ("embed", "mlp"), bias=bias, rngs=rngs)
        self.up = Linear((hidden, intermediate), ("embed", "mlp"), bias=bias, rngs=rngs)
        self.down = Linear((intermediate, hidden), ("mlp", "embed"), bias=bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` layers as one module whose parameters have a leading axis for the layer."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(transform_metadata={nnx.PARTITION_NAME: None})
    def build(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return build(rngs)


def scan_layers(
    layers: nnx.Module,
    body: Callable[[nnx.Module, Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any,
    remat: str = "none",
) -> tuple[Any, Any]:
    """Runs `body(layer, carry, x) -> (carry, y)` over stacked layers; `remat` names an entry of `REMAT_POLICIES`."""
    graph, state = nnx.split(layers)

    def step(carry, inputs):
        state, x = inputs
        return body(nnx.merge(graph, nnx.map_state(_in_place, state)), carry, x)

    if REMAT_POLICIES[remat] is not None:
        # The scan already keeps XLA from merging the recomputation with the forward pass.
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (state, xs))


def _in_place(_: Any, variable: nnx.Variable) -> nnx.Variable:
    """A layer's parameter, pinned to where it lies: so is its gradient, which no device then sums up whole."""
    value = variable.get_value()
    if not isinstance(value, jax.Array):  # with an adapter, it has no gradient
        return variable
    return variable.replace(constrain(value, variable.logical_axes))


def layer_flags(count: int, marked: Sequence[int]) -> Bool[np.ndarray, " count"]:
    """True at the marked layers."""
    return np.isin(np.arange(count), marked)
