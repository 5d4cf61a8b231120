"""Optimizer and judge in the host's memory: the same numbers, and nothing of them on the devices between uses."""

from __future__ import annotations

import types

import jax
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.host_memory import PINNED, check_host_memory
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.models import serving_params
from perception_r1_jax.plan.programs import device_bytes
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state
from tests import tiny
from tests.grpo_fixtures import BANNED, make_batch, run_config


def kinds(tree):
    """Kinds of memory that matrices lie in."""
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree) if x.ndim > 1}


def trained(host_memory: bool, **fields):
    """The state after two updates over eight devices, and the metrics of both."""
    config = run_config(optimizer__host_memory=host_memory, **fields)
    mesh, optimizer = make_mesh(2, 2, 2), make_optimizer(config.optimizer, 10)
    abstract = abstract_state(tiny.CONFIG, optimizer, mesh, host_memory=host_memory)
    state = init_state(jax.tree.map(np.asarray, tiny.params()), optimizer, abstract)
    step, metrics = TrainStep(tiny.CONFIG, config, mesh, optimizer, banned_ids=BANNED), []
    for _ in range(2):
        assert kinds(state.opt_state) == {PINNED if host_memory else "device"}
        state, measured = step(state, make_batch())
        metrics.append(measured)
    assert kinds(state.params) == {"device"}
    assert device_bytes(state.opt_state) == device_bytes(abstract.opt_state)
    assert (device_bytes(state.opt_state) < 200) == host_memory  # a few numbers that are no moments
    return jax.tree.map(np.asarray, (state, metrics))


@pytest.mark.parametrize("fields", [{}, {"optimizer__moments_dtype": "bfloat16", "optimizer__name": "muon"}])
@pytest.mark.usefixtures("compiled_anew")
def test_the_update_is_the_same_bit_for_bit(fields):
    jax.tree.map(np.testing.assert_array_equal, trained(True, **fields), trained(False, **fields))


SAMPLING = Sampling(max_new_tokens=6, stop_ids=(tiny.STOP_ID,), pad_id=tiny.PAD_ID, temperature=0.0)


def test_an_engine_generates_the_same_from_weights_in_the_hosts_memory():
    def stream(mesh, dtype):
        return flatten_serving(tiny.params())

    prompts, answers = tiny.prompt_batch([20, 24], [1, 0]), []
    for host_memory in (False, True):
        engine = Engine(tiny.CONFIG, None, make_mesh(devices=jax.devices()[:1]))
        engine.read(stream, host_memory=host_memory)
        with engine.on_device():
            assert kinds(engine._params) == {"device"}
            answers.append(engine.generate(prompts, 1, SAMPLING, jax.random.key(0)))
        assert kinds(engine._params) == {PINNED if host_memory else "device"}
        assert engine.compilations > 0
    np.testing.assert_array_equal(answers[0].tokens, answers[1].tokens)
    np.testing.assert_array_equal(answers[0].logps, answers[1].logps)


def flatten_serving(params):
    """(place, parameter) of the serving parameters, one after another."""
    paths = jax.tree_util.tree_leaves_with_path(serving_params(params))
    return ((tuple(key.key for key in path), x) for path, x in paths)


def test_devices_without_such_memory_are_refused():
    device = types.SimpleNamespace(
        device_kind="Abacus 3", addressable_memories=lambda: [types.SimpleNamespace(kind="beads")]
    )
    mesh = types.SimpleNamespace(local_mesh=types.SimpleNamespace(devices=np.array([device], object)))
    with pytest.raises(UserError, match=r"config.optimizer.host_memory is True, but Abacus 3 has no .* only beads"):
        check_host_memory("optimizer.host_memory", mesh)
    check_host_memory("optimizer.host_memory", make_mesh())
