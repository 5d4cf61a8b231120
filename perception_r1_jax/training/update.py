"""The update of a step, whatever its loss is."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from perception_r1_jax.host_memory import to_device
from perception_r1_jax.models import Params
from perception_r1_jax.training.state import TrainState


def apply_gradients(
    optimizer: optax.GradientTransformation, state: TrainState, trained: Params, grads: Params
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """The state after one update, and `grad_norm` (before clipping), `update_norm` and `skipped` (so far in the run).

    A gradient whose norm is not finite leaves parameters and optimizer as they were, bit for bit, and is counted.

    Args:
        optimizer: the one that made the state.
        state: before the update.
        trained: the parameters of the state that receive updates.
        grads: their gradients.
    """
    grad_norm = optax.tree.norm(grads)
    before = to_device(state.opt_state)
    updates, opt_state = optimizer.update(grads, before, trained)
    new, old = (optax.apply_updates(trained, updates), opt_state), (trained, before)
    finite = jnp.isfinite(grad_norm)
    trained, opt_state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
    skipped = state.skipped + (~finite).astype(jnp.int32)
    params, step = {**state.params, **trained}, state.step + 1
    state = dataclasses.replace(state, params=params, opt_state=opt_state, step=step, skipped=skipped)
    update_norm = jnp.where(finite, optax.tree.norm(updates), 0.0)
    metrics = {"grad_norm": grad_norm, "update_norm": update_norm, "skipped": skipped}
    return state, jax.tree.map(lambda x: x.astype(jnp.float32), metrics)
