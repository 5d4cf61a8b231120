"""AdamW or Muon with a warm-up, a schedule and a limit on the gradient's norm, built from `config.optimizer`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict
from optax.contrib import MuonDimensionNumbers, muon

from perception_r1_jax.training.moments import narrow_moments

OPTIMIZERS = ("adamw", "muon")
MUON_RMS = 0.2
"""Root mean square of Muon's updates over the learning rate: about AdamW's, whose rates so fit (arXiv 2502.16982)."""

DECAYED = ("kernel", "embedding", "a", "b")
"""Last names of the parameters that weight decay shrinks: matrices, also of adapters, not biases and norm scales."""


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

    Decoupled weight decay (arXiv 1711.05101) takes matrices only; under `fidelity="paper"` all parameters. Muon (Jordan
    et al. 2024, https://kellerjordan.github.io/posts/muon) takes the matrices of the layers, and AdamW, without weight
    decay, the rest.
    """
    schedule = make_schedule(config, steps, fidelity=fidelity)
    rule = _muon(config, schedule) if config.name == "muon" else _adamw(config, schedule, fidelity)
    if config.moments_dtype == "bfloat16":
        rule = narrow_moments(rule)
    chain = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), rule)

    def update(grads, state, params):
        with jax.numpy_dtype_promotion("standard"):  # optax raises a Python float to the power of an integer count
            return chain.update(grads, state, params)

    return optax.GradientTransformation(chain.init, update)


def _adamw(config: ConfigDict, schedule: optax.Schedule, fidelity: str) -> optax.GradientTransformation:
    return optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=None if fidelity == "paper" else _is_decayed,
    )


def _muon(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return muon(
        schedule,
        beta=config.b1,
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        nesterov=False,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=MUON_RMS,
    )


def _matrices(params: Any) -> Any:
    """For each parameter that is a stack of the layers' matrices, which axes a matrix maps from and to; else None."""
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix(path: tuple[jax.tree_util.DictKey, ...], kernel: jax.Array) -> MuonDimensionNumbers | None:
    names, last = [key.key for key in path], kernel.ndim - 1
    if "layers" not in names or names[-1] != "kernel":
        return None
    if names[-2] == "o":  # [layers, heads, head_dim, hidden]
        return MuonDimensionNumbers(tuple(range(1, last)), (last,))
    if names[-2] == "qkv":  # [layers, hidden, 3, heads, head_dim]: three matrices
        return MuonDimensionNumbers((1,), (3, 4))
    return MuonDimensionNumbers((1,), tuple(range(2, last + 1)))  # [layers, hidden, ...]


def _is_decayed(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in DECAYED, params)
