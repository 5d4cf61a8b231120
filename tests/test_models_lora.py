"""Adapters: what they do to a model and to its gradient, and what is left of them where they are merged."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.inference.reshard import Serving
from perception_r1_jax.models import (
    ADAPTERS,
    Adapters,
    base_params,
    embed_prompts,
    forward,
    init_adapters,
    merge_adapters,
)
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state, state_options
from perception_r1_jax.weights.names import flatten
from tests import tiny
from tests.grpo_fixtures import BANNED, make_batch, one_device_mesh, relative_difference, run_config
from tests.naive import prompt_mask

MODULES = ("q", "v", "o", "qkv", "up", "down")


def abstract(mesh=None, **fields):
    config = run_config(**{"lora__modules": MODULES, **fields})
    return abstract_state(tiny.CONFIG, optax.sgd(1.0), mesh or one_device_mesh(), **state_options(config))


def adapted(zero: bool) -> dict:
    """The tiny model with adapters as they begin, B zero, or with random ones."""
    adapters = init_adapters(abstract().params[ADAPTERS], jax.random.key(5))
    if not zero:
        adapters = jax.tree.map(lambda x: jnp.cos(7 * jnp.arange(x.size).reshape(x.shape)) * 0.2 + x, adapters)
    return {**tiny.params(), ADAPTERS: adapters}


@functools.partial(jax.jit, static_argnames="remat")
def hidden(params, remat="none"):
    batch = tiny.prompt_batch([20, 24], [1, 0])
    embedded = embed_prompts(tiny.CONFIG, params, batch, remat=remat)
    return forward(tiny.CONFIG, params, embedded, batch.positions, prompt_mask(batch), remat=remat)


def test_a_model_whose_adapters_are_zero_is_the_base_exactly():
    np.testing.assert_array_equal(hidden(adapted(zero=True)), hidden(tiny.params()))


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_merged_model_is_the_one_with_adapters(remat):
    params = adapted(zero=False)
    with_adapters = hidden(params, remat=remat)
    assert relative_difference(with_adapters, hidden(merge_adapters(params))) < 1e-5
    assert relative_difference(with_adapters, hidden(tiny.params())) > 0.1


def kernels(adapters: Adapters):
    """(place, A, B) of each adapter as numpy, in float64."""
    leaves = {path: np.asarray(x, np.float64) for path, x in flatten(adapters.matrices).items()}
    return [(path[:-2], leaves[path], leaves[f"{path[:-1]}b"]) for path in leaves if path.endswith("/a")]


def matrices(a, b, whole):
    """Each layer's A [in, r], B [r, out] and a matrix of W's shape as [in, out]."""
    for layer in range(len(a)):
        rank = a.shape[-1]
        flat_a, flat_b = a[layer].reshape(-1, rank), b[layer].reshape(rank, -1)
        yield flat_a, flat_b, whole[layer].reshape(len(flat_a), -1)


def test_merging_adds_the_scaled_product():
    params = adapted(zero=False)
    merged, base = flatten(merge_adapters(params)), flatten(tiny.params())
    places = kernels(params[ADAPTERS])
    assert len(places) == 5 + 4  # of the decoder, and without v, which qkv holds, of the vision tower
    for place, a, b in places:
        change = np.asarray(merged.pop(f"{place}/kernel"), np.float64) - np.asarray(base[f"{place}/kernel"])
        for flat_a, flat_b, changed in matrices(a, b, change):
            np.testing.assert_allclose(changed, 1.5 * flat_a @ flat_b, atol=1e-6)  # alpha 3 over rank 2
    for path, x in merged.items():
        np.testing.assert_array_equal(x, base[path])


def step_from(params, mesh, **fields):
    """Old minus new parameters of one step of plain gradient descent: the gradient of what is trained."""
    config, optimizer = run_config(**fields), optax.sgd(1.0)
    layout = abstract_state(tiny.CONFIG, optimizer, mesh, **state_options(config))
    state = init_state(jax.tree.map(np.asarray, params), optimizer, layout)
    step = TrainStep(tiny.CONFIG, config, mesh, optimizer, banned_ids=BANNED)
    state, metrics = step(state, make_batch())
    return jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), params, state.params), metrics


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)])
def test_the_gradient_is_that_of_the_merged_weights_projected(shape):
    """That is dA = scale dW B^T and dB = scale A^T dW, with dW of a step that trains the merged weights themselves."""
    params = adapted(zero=False)
    mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
    got, metrics = step_from(params, mesh, lora__modules=MODULES)
    whole, expected = step_from(merge_adapters(params), one_device_mesh())
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), base_params(got))  # the base stays
    whole, grads = flatten(whole), {place: (a, b) for place, a, b in kernels(got[ADAPTERS])}
    for place, a, b in kernels(params[ADAPTERS]):
        grad_a, grad_b = grads[place]
        for layer, (flat_a, flat_b, down) in enumerate(
            matrices(a, b, np.asarray(whole[f"{place}/kernel"], np.float64))
        ):
            to_a, to_b = 1.5 * down @ flat_b.T, 1.5 * flat_a.T @ down
            assert np.linalg.norm(to_a) > 1e-4
            np.testing.assert_allclose(grad_a[layer].reshape(to_a.shape), to_a, atol=2e-5 * np.abs(to_a).max())
            np.testing.assert_allclose(grad_b[layer].reshape(to_b.shape), to_b, atol=2e-5 * np.abs(to_b).max())


def flatten_pairs(*trees):
    """(path, leaves) of trees of one structure, as numpy."""
    leaves = [jax.tree_util.tree_leaves_with_path(tree) for tree in trees]
    return [(str(pairs[0][0]), [np.asarray(x) for _, x in pairs]) for pairs in zip(*leaves)]


@pytest.mark.parametrize("int8", [False, True])
def test_what_serves_is_the_merged_model(int8):
    serving, params = Serving(tiny.CONFIG, jnp.dtype(jnp.bfloat16), int8=int8), adapted(zero=False)
    got, expected = jax.jit(serving.convert)(params), jax.jit(serving.convert)(merge_adapters(params))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(lambda x: (x.shape, x.dtype), serving.shapes)
    for path, (a, b) in flatten_pairs(got, expected):
        worst = 1 if a.dtype == jnp.int8 else 0.005 * np.abs(np.asarray(b, np.float32)).max()  # a step of rounding
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=worst, err_msg=path)


def test_only_adapters_have_moments_and_the_base_is_in_the_dtype_to_compute_in():
    layout = abstract(make_mesh(2, 2, 2), model__dtype="bfloat16", model__freeze_vision=True)
    assert {x.dtype.name for x in jax.tree.leaves(base_params(layout.params))} == {"bfloat16"}
    adapters = layout.params[ADAPTERS]
    assert set(adapters.matrices) == {"decoder"}
    assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
    a = adapters.matrices["decoder"]["layers"]["mlp"]["up"]["a"]
    assert a.sharding.shard_shape(a.shape) == (2, 32 // 2, 2)
    options = state_options(run_config(lora__modules=MODULES))
    optimizer = make_optimizer(run_config().optimizer, 10)
    state = abstract_state(tiny.CONFIG, optimizer, one_device_mesh(), **options)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim > 0)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(state.params[ADAPTERS]))


def test_adapters_begin_as_peft_draws_them():
    adapters = init_adapters(abstract(lora__rank=64).params[ADAPTERS], jax.random.key(0))
    for _, a, b in kernels(adapters):
        bound = np.prod(a.shape[1:-1]) ** -0.5
        assert np.abs(a).max() <= bound
        np.testing.assert_allclose(a.std(), bound / np.sqrt(3), rtol=0.1)
        assert not b.any()
    drawn = [a.ravel()[:8].tolist() for _, a, _ in kernels(adapters)]
    assert len({tuple(numbers) for numbers in drawn}) == len(drawn)
