"""AdamW by hand, the two warm-ups, and what weight decay reaches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.training.optimizer import make_optimizer, make_schedule
from tests.grpo_fixtures import run_config

PARAMS = {"mlp": {"kernel": np.float32([[2.0]]), "bias": np.float32([[2.0]])}, "norm": {"scale": np.float32([[2.0]])}}


def config(**changes):
    return run_config(**{f"optimizer__{name}": value for name, value in changes.items()}).optimizer


def rates(fidelity, fraction, steps, count):
    schedule = make_schedule(config(learning_rate=1.0, warmup_fraction=fraction), steps, fidelity=fidelity)
    return [float(schedule(jnp.int32(k))) for k in range(count)]


def test_warm_up_reaches_the_full_rate_and_stays():
    np.testing.assert_allclose(rates("default", 0.4, 10, 6), [0.25, 0.5, 0.75, 1, 1, 1])
    np.testing.assert_allclose(rates("default", 0.0, 10, 2), [1, 1])


def test_paper_warm_up_is_the_authors():
    # 5% of 275 steps: k / 13, and the first update is zero
    got = rates("paper", 0.05, 275, 15)
    np.testing.assert_allclose(got, [min(1, k / 13) for k in range(15)], rtol=1e-6)


def test_a_cosine_falls_to_a_tenth_at_the_last_step():
    schedule = make_schedule(config(learning_rate=1.0, warmup_fraction=0.4, schedule="cosine"), 10)
    got = [float(schedule(jnp.int32(k))) for k in range(12)]
    fall = [0.1 + 0.9 * (1 + np.cos(np.pi * done / 6)) / 2 for done in range(1, 7)]
    np.testing.assert_allclose(got, [0.25, 0.5, 0.75, 1, *fall, 0.1, 0.1], rtol=1e-5)
    assert fall[-1] == pytest.approx(0.1)
    whole = make_schedule(config(learning_rate=2.0, warmup_fraction=0.0, schedule="cosine"), 2)
    np.testing.assert_allclose([float(whole(jnp.int32(k))) for k in range(2)], [1.1, 0.2], rtol=1e-5)


def steps_of(optimizer, gradients):
    """Parameters after updates with these gradients, the same for all parameters."""
    params, state = PARAMS, optimizer.init(PARAMS)
    for gradient in gradients:
        grads = {name: {leaf: jnp.full((1, 1), gradient) for leaf in group} for name, group in params.items()}
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    return params


def test_two_steps_of_adamw_by_hand():
    optimizer = make_optimizer(config(learning_rate=0.1, eps=1e-8, weight_decay=0.5, max_grad_norm=1e9), 10)
    params = steps_of(optimizer, [1.0, -2.0])
    # step 1: m = 1, v = 1 after bias correction; step 2: m = (0.9 * 0.1 - 0.1 * 2) / (1 - 0.9^2), v likewise
    second = ((0.09 - 0.2) / 0.19) / np.sqrt((0.999e-3 + 4e-3) / (1 - 0.999**2))
    plain = 2 - 0.1 * 1 - 0.1 * second
    decayed = (2 * (1 - 0.05) - 0.1) * (1 - 0.05) - 0.1 * second
    np.testing.assert_allclose(params["mlp"]["kernel"], decayed, rtol=1e-5)
    np.testing.assert_allclose(params["mlp"]["bias"], plain, rtol=1e-5)
    np.testing.assert_allclose(params["norm"]["scale"], plain, rtol=1e-5)


def test_paper_weight_decay_reaches_all_parameters():
    options = config(learning_rate=0.1, weight_decay=0.5)
    params = steps_of(make_optimizer(options, 10, fidelity="paper"), [1.0])
    leaves = np.array([float(x[0, 0]) for x in jax.tree.leaves(params)])
    assert np.all(leaves == leaves[0])


@pytest.mark.parametrize(("limit", "share"), [(1e9, 1.0), (0.5, 0.5 / np.sqrt(3))])
def test_the_gradient_is_clipped_by_its_global_norm(limit, share):
    # with eps = 1 the first update is g / (|g| + 1), which shows the size of g
    optimizer = make_optimizer(config(learning_rate=1.0, eps=1.0, weight_decay=0.0, max_grad_norm=limit), 10)
    params = steps_of(optimizer, [1.0])
    np.testing.assert_allclose(params["mlp"]["bias"], 2 - share / (share + 1), rtol=1e-5)


def one_update_of_muon(params, gradients):
    options = config(name="muon", learning_rate=1.0, warmup_fraction=0.0, weight_decay=0.0, max_grad_norm=1e9)
    optimizer = make_optimizer(options, 10)
    return optimizer.update(gradients, optimizer.init(params), params)[0]


def matrices_of(name, array):
    """The matrices in a stack over layers, as the model multiplies by them: [hidden, ...] or, for o, [..., hidden]."""
    layers = np.asarray(array)
    if name == "qkv":
        return [layer[:, part].reshape(layer.shape[0], -1) for layer in layers for part in range(3)]
    return [layer.reshape(-1, layer.shape[-1]) if name == "o" else layer.reshape(len(layer), -1) for layer in layers]


STACKS = {"q": (2, 24, 2, 6), "o": (2, 2, 6, 24), "qkv": (2, 24, 3, 2, 6), "gate": (2, 24, 40), "down": (2, 40, 24)}


@pytest.mark.parametrize(("name", "shape"), STACKS.items())
def test_muon_makes_all_directions_of_a_matrix_equally_long(name, shape):
    gradient = np.random.default_rng(0).standard_normal(shape, np.float32)
    gradient[1] *= 50  # each layer by itself
    tree = {"layers": {name: {"kernel": jnp.asarray(gradient)}}}
    update = one_update_of_muon(tree, tree)["layers"][name]["kernel"]
    for got, down in zip(matrices_of(name, update), matrices_of(name, gradient)):
        u, _, v = np.linalg.svd(down, full_matrices=False)
        length = 0.2 * np.sqrt(max(down.shape))
        along = u.T @ got @ v.T / -length  # Newton-Schulz comes near 1, not to it
        assert np.all((np.diag(along) > 0.6) & (np.diag(along) < 1.3))
        np.testing.assert_allclose(along - np.diag(np.diag(along)), 0, atol=0.02)


def test_muon_leaves_what_is_no_matrix_of_a_layer_to_adamw():
    params = {"embed": {"embedding": jnp.ones((4, 3))}, "layers": {"norm": {"scale": jnp.ones((2, 3))}}}
    updates = one_update_of_muon(params, params)
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -1.0, rtol=0.1)


def test_muon_decays_the_matrices_of_the_layers_alone():
    params = {"embed": {"embedding": jnp.ones((4, 3))}, "layers": {"gate": {"kernel": jnp.ones((2, 3, 4))}}}
    options = config(name="muon", learning_rate=0.1, warmup_fraction=0.0, weight_decay=0.5)
    optimizer = make_optimizer(options, 10)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["layers"]["gate"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(updates["embed"]["embedding"], 0)
