"""AdamW with a warm-up, a schedule and a limit on the gradient's norm, built from `config.optimizer`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

DECAYED = ("kernel", "embedding")
"""Last names of the parameters that weight decay shrinks: matrices, not biases and norm scales."""


SCHEDULES = ("constant", "cosine")
COSINE_END = 0.1
"""Share of its highest value that the learning rate of a cosine ends at."""


def make_schedule(config: ConfigDict, steps: int, *, fidelity: str = "default") -> optax.Schedule:
    """Learning rate of update k = 0, 1, ...: linear warm-up over w = `int(warmup_fraction * steps)` updates, then
    constant, or half a cosine down to `COSINE_END` of it at the last update (arXiv 1608.03983, without restarts).

    In warm-up the factor is min(1, (k + 1) / w), so that no update is lost; under `fidelity="paper"`
    it is min(1, k / w) as in the authors' code, whose first update is zero.

    The count is the optimizer's own: a skipped step leaves it, and so the learning rate, where it was.
    """
    warmup = int(config.warmup_fraction * steps)
    first = 0 if fidelity == "paper" else 1

    def schedule(count):
        factor = jnp.minimum(1.0, (count + first) / warmup) if warmup else jnp.ones(())
        if config.schedule == "cosine":
            done = jnp.clip((count + 1 - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            factor *= COSINE_END + (1 - COSINE_END) * (1 + jnp.cos(jnp.pi * done)) / 2
        return config.learning_rate * factor

    return schedule


def make_optimizer(config: ConfigDict, steps: int, *, fidelity: str = "default") -> optax.GradientTransformation:
    """The optimizer of a run of so many steps.

    Decoupled weight decay (arXiv 1711.05101) takes matrices only; under `fidelity="paper"` all parameters.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            make_schedule(config, steps, fidelity=fidelity),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=None if fidelity == "paper" else _is_decayed,
        ),
    )

    def update(grads, state, params):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to the power of an integer count
            return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)


def _is_decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
