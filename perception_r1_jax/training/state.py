"""What a run carries from step to step, and how it lies on the mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perception_r1_jax.host_memory import PINNED
from perception_r1_jax.models import (
    ADAPTERS,
    Adapters,
    LoraConfig,
    ModelConfig,
    Params,
    abstract_params,
    logical_axes,
    narrow_matrices,
)
from perception_r1_jax.sharding import replicated, tree_shardings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything the train step updates. Random keys are not here: they derive from the seed and the step.

    Attributes:
        params: all of them; float32 master weights, but those that stay as they are beside adapters.
        opt_state: optimizer state of the trained parameters.
        step: int32 [], optimizer steps, skipped ones included.
        skipped: int32 [], those without an update because their gradient was not finite.
        kl_scale: float32 [], what the adaptive control has made of the KL term's weight, as a factor (`grpo/kl.py`).
    """

    params: Params
    opt_state: Any
    step: jax.Array
    skipped: jax.Array
    kl_scale: jax.Array


def trained_params(params: Params, *, freeze_vision: bool) -> Params:
    """The parameters that receive updates: adapters where there are any, else all, or all but the vision tower's."""
    if ADAPTERS in params:
        return {ADAPTERS: params[ADAPTERS]}
    return {name: tree for name, tree in params.items() if not (freeze_vision and name == "vision")}


def state_options(config: ConfigDict) -> dict[str, Any]:
    """The keyword arguments that a run's config gives `abstract_state`."""
    model, lora = config.model, None
    if config.lora.modules:
        scale, vision = config.lora.alpha / config.lora.rank, not model.freeze_vision
        lora = LoraConfig(config.lora.rank, scale, tuple(config.lora.modules), vision, model.dtype)
    return {"freeze_vision": model.freeze_vision, "host_memory": config.optimizer.host_memory, "lora": lora}


def abstract_state(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    freeze_vision: bool = False,
    host_memory: bool = False,
    lora: LoraConfig | None = None,
) -> TrainState:
    """Shape, dtype and sharding of every array of the state, from which initialisation and restoring derive.

    The optimizer's moments lie like the parameters they belong to, with `host_memory` in that of the devices' hosts;
    everything else is on every device. With `lora` adapters are trained, and the model's own parameters in its dtype.
    """
    shapes = abstract_params(config)
    params = jax.tree.map(_place, shapes, tree_shardings(mesh, logical_axes(config), shapes))
    if lora:
        params = jax.tree.map(lambda x: x.update(dtype=jnp.dtype(lora.dtype)), params)
        params[ADAPTERS] = _abstract_adapters(config, lora, mesh)
    trained = trained_params(params, freeze_vision=freeze_vision)
    everywhere = replicated(mesh)
    opt_state = optax.tree_map_params(
        optimizer,
        _place,
        jax.eval_shape(optimizer.init, trained),
        jax.tree.map(lambda x: x.sharding.with_memory_kind(PINNED) if host_memory else x.sharding, trained),
        transform_non_params=lambda x: _place(x, everywhere),
        is_leaf=_is_absent,
    )
    counter = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    return TrainState(params, opt_state, counter, counter, jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere))


def _abstract_adapters(config: ModelConfig, lora: LoraConfig, mesh: Mesh) -> Adapters:
    sizes = narrow_matrices(lora, jax.tree.map(lambda x: x.shape, abstract_params(config)), lora.rank)
    shapes = jax.tree.map(
        lambda size: jax.ShapeDtypeStruct(size, jnp.float32), sizes, is_leaf=lambda x: isinstance(x, tuple)
    )
    shardings = tree_shardings(mesh, narrow_matrices(lora, logical_axes(config), None), shapes)
    return Adapters(jax.tree.map(_place, shapes, shardings), lora.scale)


def state_shardings(abstract: TrainState) -> TrainState:
    """The shardings alone, as `jax.jit` wants them."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def init_state(
    params: Params, optimizer: optax.GradientTransformation, abstract: TrainState, *, freeze_vision: bool = False
) -> TrainState:
    """The state of a run that begins from these parameters, laid out as `abstract` says.

    The state takes the parameters over: the first train step, which donates it, may free the caller's arrays.
    """
    shardings = state_shardings(abstract)
    params = jax.device_put(params, shardings.params)
    trained = trained_params(params, freeze_vision=freeze_vision)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(trained)
    counters = jax.device_put((jnp.int32(0), jnp.int32(0), jnp.float32(1)), (shardings.step,) * 3)
    return TrainState(params, opt_state, *counters)


def _is_absent(x) -> bool:
    """Where the state of one rule of an optimizer would lie for a parameter that another rule updates."""
    return isinstance(x, optax.MaskedNode)


def _place(x, sharding):
    if _is_absent(x):
        return x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
