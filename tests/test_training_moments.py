"""Moments in bfloat16: what rounding by chance keeps true, and that nothing else of the optimizer changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.moments import round_by_chance
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state
from tests import tiny
from tests.grpo_fixtures import run_config

KEY = jax.random.key(3)


def neighbours(x):
    """The two numbers in bfloat16 between which a float32 lies."""
    below = (np.float32(x).view(np.uint32) >> 16).astype(np.uint16)
    return tuple(np.float32(np.uint16(bits).view(ml_dtypes.bfloat16)) for bits in (below, below + 1))


@pytest.mark.parametrize("x", [1.003, -0.7771, 3.1e-12, 1e30, 6.5e-41])
def test_a_number_goes_to_its_neighbours_as_often_as_it_is_near_them(x):
    rounded = np.asarray(round_by_chance(jnp.full(40_000, x, jnp.float32), KEY), np.float32)
    low, high = neighbours(x)
    assert set(np.unique(rounded)) == {low, high}
    share = (np.float64(np.float32(x)) - low) / (np.float64(high) - low)
    assert abs(np.mean(rounded == high) - share) < 5 * np.sqrt(share * (1 - share) / len(rounded))


def test_what_bfloat16_holds_stays_as_it_is():
    exact = jnp.array([0.0, -0.0, 1.0, -2.5, 2.0**-126, 3e38, jnp.inf, -jnp.inf], jnp.bfloat16).astype(jnp.float32)
    for seed in range(50):
        np.testing.assert_array_equal(round_by_chance(exact, jax.random.key(seed)).astype(jnp.float32), exact)


def second_moments(values, narrow: bool):
    """The mean of squares of 4,096 equal parameters after updates with these gradients."""
    options = {"eps": 1.0, "b2": 0.999, "warmup_fraction": 0.0, "max_grad_norm": 1e9}
    options = {f"optimizer__{name}": value for name, value in options.items()}
    dtype = "bfloat16" if narrow else "float32"
    rule = make_optimizer(run_config(**options, optimizer__moments_dtype=dtype).optimizer, 1000)
    params = {"kernel": jnp.zeros(4096)}
    state = rule.init(params)
    update = jax.jit(lambda gradient, state: rule.update({"kernel": jnp.full(4096, gradient)}, state, params)[1])
    for gradient in values:
        state = update(gradient, state)
    return np.asarray(optax.tree.get(state, "nu")["kernel"], np.float64)


@pytest.mark.parametrize("then", [0.0, 1.5])
def test_the_mean_of_squares_follows_gradients_that_fall_or_rise(then):
    """To the nearest it would neither fall from 1 nor rise: 0.999 and 1 + 0.001 x 1.25 both round back to 1."""
    assert jnp.bfloat16(0.999) == jnp.bfloat16(1 + 0.001 * (1.5**2 - 1)) == 1
    values = [np.sqrt(1000.0), *[then] * 300]
    exact, got = second_moments(values, narrow=False), second_moments(values, narrow=True)
    assert abs(exact[0] - 1) > 0.2
    np.testing.assert_allclose(got.mean(), exact[0], rtol=5e-3)


def gradients(params, step=0):
    """Made up, of all sizes."""
    return jax.tree.map(lambda x: jnp.cos(37 * x + step), params)


def optimizers(name):
    return [
        make_optimizer(run_config(optimizer__name=name, optimizer__moments_dtype=dtype).optimizer, 10)
        for dtype in ("float32", "bfloat16")
    ]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_first_update_is_the_same_and_moments_take_half(name):
    """Moments begin at zero, and the first update is computed from them before they are rounded."""
    wide, narrow = optimizers(name)
    params = tiny.params()
    grads = gradients(params)
    states = [optimizer.init(params) for optimizer in (wide, narrow)]
    # Operation by operation: what XLA fuses differs between the two, and so does the last digit.
    (expected, _), (got, after) = (
        optimizer.update(grads, state, params) for optimizer, state in zip((wide, narrow), states)
    )
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    kinds = {x.dtype.name for x in jax.tree.leaves(after) if x.ndim > 1}
    assert kinds == {"bfloat16"}
    sizes = [sum(x.nbytes for x in jax.tree.leaves(state) if x.ndim > 0) for state in states]
    assert sizes[1] == pytest.approx(sizes[0] / 2, rel=1e-3)
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, states[1])


def test_ten_updates_stay_near_those_with_wide_moments():
    wide, narrow = optimizers("adamw")

    def trained(optimizer):
        params = tiny.params()
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for step in range(10):
            updates, state = update(gradients(params, step), state, params)
            params = optax.apply_updates(params, updates)
        return jax.tree.map(lambda new, old: np.asarray(new - old), params, tiny.params())

    changes = jax.tree.map(lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b), trained(narrow), trained(wide))
    assert 0 < max(jax.tree.leaves(changes)) < 0.02


def test_the_mesh_does_not_matter_and_moments_lie_like_their_parameters():
    optimizer = optimizers("adamw")[1]

    def updated(mesh):
        abstract = abstract_state(tiny.CONFIG, optimizer, mesh)
        state = init_state(jax.tree.map(np.asarray, tiny.params()), optimizer, abstract)
        grads = gradients(state.params)
        opt_state = jax.jit(optimizer.update)(grads, state.opt_state, state.params)[1]
        adam = abstract.opt_state[1].inner[0]
        jax.tree.map(lambda m, p: np.testing.assert_equal(m.sharding, p.sharding), adam.nu, abstract.params)
        return jax.tree.map(np.asarray, opt_state[1].inner[0].nu)

    jax.tree.map(
        np.testing.assert_array_equal, updated(make_mesh(2, 2, 2)), updated(make_mesh(devices=jax.devices()[:1]))
    )
