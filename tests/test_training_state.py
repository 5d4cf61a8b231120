"""The state's layout, derived once."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state, trained_params
from tests import tiny
from tests.grpo_fixtures import run_config

OPTIMIZER = make_optimizer(run_config().optimizer, 10)
MUON = make_optimizer(run_config(optimizer__name="muon").optimizer, 10)


def test_moments_lie_like_their_parameters():
    abstract = abstract_state(tiny.CONFIG, OPTIMIZER, make_mesh(2, 2, 2))
    adam = abstract.opt_state[1][0]
    for moments in (adam.mu, adam.nu):
        jax.tree.map(
            lambda m, p: np.testing.assert_equal((m.shape, m.sharding), (p.shape, p.sharding)), moments, abstract.params
        )
    kernel = abstract.params["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 32 // 2, 48 // 2)
    assert adam.count.sharding.is_fully_replicated


def test_each_parameter_has_the_moments_of_one_rule_and_they_lie_like_it():
    abstract = abstract_state(tiny.CONFIG, MUON, make_mesh(2, 2, 2))
    rules = abstract.opt_state[1].inner_states
    momentum, mean = (rules[rule].inner_state[0].mu for rule in ("muon", "adam"))
    absent = optax.MaskedNode()

    def check(path, parameter, *moments):
        (kept,) = (moment for moment in moments if moment != absent)
        np.testing.assert_equal((kept.shape, kept.sharding), (parameter.shape, parameter.sharding))
        names = [key.key for key in path]
        assert (moments[0] is kept) == ("layers" in names and names[-1] == "kernel")

    jax.tree_util.tree_map_with_path(check, abstract.params, momentum, mean)


@pytest.mark.parametrize("optimizer", [OPTIMIZER, MUON], ids=["adamw", "muon"])
def test_a_new_state_is_as_the_abstract_one_says(optimizer):
    abstract = abstract_state(tiny.CONFIG, optimizer, make_mesh(2, 2, 2), freeze_vision=True)
    params = jax.tree.map(np.asarray, tiny.params())
    state = init_state(params, optimizer, abstract, freeze_vision=True)
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    assert jax.tree.structure(described) == jax.tree.structure(abstract)
    for got, expected in zip(jax.tree.leaves(described), jax.tree.leaves(abstract)):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        assert got.sharding.is_equivalent_to(expected.sharding, len(got.shape))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)


def test_frozen_parameters_have_no_moments():
    abstract = abstract_state(tiny.CONFIG, OPTIMIZER, make_mesh(2, 2, 2), freeze_vision=True)
    params = jax.tree.map(np.asarray, tiny.params())
    state = init_state(params, OPTIMIZER, abstract, freeze_vision=True)
    assert set(state.opt_state[1][0].mu) == set(trained_params(params, freeze_vision=True)) == {"decoder"}
