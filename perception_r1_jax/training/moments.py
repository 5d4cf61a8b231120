"""An optimizer's moments in bfloat16: half of its memory, all else of it as it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, BFloat16, Float, Int, Key

MOMENTS_DTYPES = ("float32", "bfloat16")

SEED = 0
"""Of the rounding. The same in every run: it is noise far below that of the gradients."""


class Narrow(NamedTuple):
    """updates: int32 [], so many were made; inner: the optimizer's state, its moments in bfloat16."""

    updates: Int[Array, ""]
    inner: Any


def narrow_moments(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer, whose moments are kept in bfloat16 and computed in float32.

    A moment is rounded up or down by chance, so that it is right on average (arXiv 1502.02551, section 2; for training
    in bfloat16: arXiv 2010.06192). Rounding to the nearest would stop the mean of squares: with b2 = 0.999 an update
    moves it by a thousandth of itself at most when gradients vanish, and neighbours in bfloat16 are four to eight
    thousandths apart. The random numbers derive from the count of updates: a resumed run rounds as it would have, and
    so does another mesh.
    """

    def init(params):
        return Narrow(jnp.zeros((), jnp.int32), _map(rule, lambda x: x.astype(jnp.bfloat16), rule.init(params)))

    def update(grads, state, params):
        wide = _map(rule, lambda x: x.astype(jnp.float32), state.inner)
        updates, wide = rule.update(grads, wide, params)
        key, place = jax.random.fold_in(jax.random.key(SEED), state.updates), itertools.count()
        inner = _map(rule, lambda x: round_by_chance(x, jax.random.fold_in(key, next(place))), wide)
        return updates, Narrow(state.updates + 1, inner)

    return optax.GradientTransformation(init, update)


def round_by_chance(x: Float[Array, "*S"], key: Key[Array, ""]) -> BFloat16[Array, "*S"]:
    """float32 to one of its two neighbours in bfloat16, the nearer the likelier; a number of bfloat16 to itself.

    A bfloat16 is the upper half of a float32: a random number is added to the lower half, which is then cut.
    """
    chance = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = (jax.lax.bitcast_convert_type(x, jnp.uint32) + chance) >> jnp.uint32(16)
    return jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)


def _map(rule: optax.GradientTransformation, function: Callable[[jax.Array], jax.Array], state: Any) -> Any:
    """The state with the function applied to its moments, and to nothing else."""
    return optax.tree_map_params(rule, function, state)
