"""The update of supervised training: what may change its result, and what may not.

Plain gradient descent, so that old minus new parameters is the gradient times the learning rate. That is large: the
difference keeps more of the gradient's digits.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.sft.loss import summed_loss, summed_scores
from perception_r1_jax.sft.step import make_sft_scores, make_sft_step
from perception_r1_jax.sharding import make_mesh, put_batch
from perception_r1_jax.training.state import abstract_state, init_state
from tests import tiny
from tests.grpo_fixtures import one_device_mesh, relative_difference
from tests.sft_fixtures import apart, packed, sft_run_config

RATE = 64.0


def gradient(batch, mesh=None, **overrides):
    """Gradient and metrics of one step."""
    config, mesh, optimizer = sft_run_config(**overrides), mesh or one_device_mesh(), optax.sgd(RATE)
    freeze = {"freeze_vision": config.model.freeze_vision}
    params = jax.tree.map(np.asarray, tiny.params(4.0))
    state = init_state(params, optimizer, abstract_state(tiny.CONFIG, optimizer, mesh, **freeze), **freeze)
    step = make_sft_step(tiny.CONFIG, config, mesh, optimizer)
    state, metrics = step(state, put_batch(mesh, batch))
    grads = jax.tree.map(lambda old, new: (np.asarray(old) - np.asarray(new)) / RATE, tiny.params(4.0), state.params)
    return grads, jax.tree.map(float, metrics)


@functools.cache
def reference():
    """One device, one micro-batch: what the others are compared with."""
    return gradient(packed())


def assert_same(result, expected, tolerance=2e-5):
    assert relative_difference(result[0], expected[0]) < tolerance
    for name, value in expected[1].items():
        np.testing.assert_allclose(result[1][name], value, rtol=tolerance, atol=1e-6, err_msg=name)


def test_the_loss_is_the_mean_over_all_response_tokens():
    batch = packed()
    mean = summed_loss(tiny.CONFIG, tiny.params(4.0), batch, chunk=16) / np.float32(batch.loss_mask.sum())
    grads, metrics = reference()
    assert metrics["loss"] == pytest.approx(float(mean), rel=1e-5)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(grads)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert norm > 0.1


@pytest.mark.parametrize("rows", [1, 2])
def test_micro_batches_change_nothing(rows):
    assert_same(gradient(packed(), sft__micro_batch_rows=rows), reference())


def test_rows_of_one_conversation_give_the_same_update():
    assert_same(gradient(apart()), reference())


@pytest.mark.usefixtures("compiled_anew")
def test_eight_devices_take_the_step_of_one():
    assert_same(gradient(packed(), mesh=make_mesh(2, 2, 2)), reference())


def test_a_frozen_tower_stays():
    grads, _ = gradient(packed(), model__freeze_vision=True)
    assert max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(grads["vision"])) == 0
    assert relative_difference(grads["decoder"], reference()[0]["decoder"]) < 2e-5


def test_micro_batches_must_divide():
    with pytest.raises(UserError, match=r"config\.sft\.micro_batch_rows is 3, which does not divide 4.* 2 and 4"):
        gradient(packed(), sft__micro_batch_rows=3)


def test_scores_are_sums_over_all_micro_batches():
    mesh, batch = one_device_mesh(), packed()
    scores = make_sft_scores(tiny.CONFIG, sft_run_config(sft__micro_batch_rows=2), mesh)
    ours = scores(tiny.params(4.0), put_batch(mesh, batch))
    theirs = summed_scores(tiny.CONFIG, tiny.params(4.0), batch, chunk=16)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, err_msg=name)
