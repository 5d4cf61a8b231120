"""The train step: what may change its result, and what may not.

Most tests use plain gradient descent with learning rate 1, so that old minus new parameters is the gradient.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from perception_r1_jax.grpo import step as grpo_step
from perception_r1_jax.grpo.aggregation import token_weights
from perception_r1_jax.grpo.kl import token_kl
from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.grpo.losses import policy_loss
from perception_r1_jax.grpo.step import LogProbs, TrainStep
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import abstract_state, init_state
from tests import tiny
from tests.grpo_fixtures import BANNED, make_batch, one_device_mesh, relative_difference, run_config


class Trainer:
    """A train step and fresh states for it."""

    def __init__(self, mesh=None, optimizer=None, **overrides):
        self.mesh = one_device_mesh() if mesh is None else mesh
        self.config = run_config(**overrides)
        self.optimizer = optax.sgd(1.0) if optimizer is None else optimizer
        self.step = TrainStep(tiny.CONFIG, self.config, self.mesh, self.optimizer, banned_ids=BANNED)

    def state(self):
        freeze = {"freeze_vision": self.config.model.freeze_vision}
        abstract = abstract_state(tiny.CONFIG, self.optimizer, self.mesh, **freeze)
        return init_state(jax.tree.map(np.asarray, tiny.params()), self.optimizer, abstract, **freeze)

    def gradient(self, batch):
        """Gradient and metrics of one step, as numpy."""
        state, metrics = self.step(self.state(), batch)
        grads = jax.tree.map(lambda old, new: np.asarray(old) - np.asarray(new), tiny.params(), state.params)
        return grads, jax.tree.map(float, metrics)


@functools.cache
def trainer():
    """One device, one micro-batch: what the others are compared with."""
    return Trainer()


@functools.cache
def reference():
    return trainer().gradient(make_batch())


def assert_same(result, expected, tolerance=2e-5):
    assert relative_difference(result[0], expected[0]) < tolerance
    for name, value in expected[1].items():
        np.testing.assert_allclose(result[1][name], value, rtol=tolerance, atol=1e-6, err_msg=name)


def test_a_bfloat16_model_has_nearly_the_same_gradient():
    grads, metrics = Trainer(model__dtype="bfloat16").gradient(make_batch())
    assert relative_difference(grads, reference()[0]) < 0.1
    np.testing.assert_allclose(metrics["entropy"], reference()[1]["entropy"], rtol=1e-2)


def test_every_parameter_has_a_gradient():
    grads, metrics = reference()
    norms = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.linalg.norm, grads))
    assert [jax.tree_util.keystr(path) for path, norm in norms if not 1e-6 < norm < np.inf] == []
    batch = make_batch()
    assert metrics["tokens"] == batch.mask.sum()
    np.testing.assert_allclose(metrics["loss"], -batch.advantages[batch.mask.any(-1)].mean(), rtol=1e-5)
    assert metrics["ratio_mean"] == 1
    total = np.sqrt(sum(norm**2 for _, norm in norms))
    np.testing.assert_allclose(metrics["grad_norm"], total, rtol=1e-5)


@pytest.mark.parametrize(("prompts", "samples"), [(8, 2), (2, 2), (1, 4), (4, 1)])
def test_micro_batches_do_not_matter(prompts, samples):
    split = Trainer(grpo__micro_batch_prompts=prompts, grpo__micro_batch_samples=samples)
    assert_same(split.gradient(make_batch()), reference())


@pytest.mark.usefixtures("compiled_anew")
@pytest.mark.parametrize(
    ("shape", "prompts", "samples", "drop"),
    [((2, 2, 2), 4, 2, False), ((1, 8, 1), 8, 4, False), ((2, 4, 1), 8, 2, True)],
)
def test_devices_do_not_matter(shape, prompts, samples, drop, capfd):
    split = {"micro_batch_prompts": prompts, "micro_batch_samples": samples, "drop_flat_groups": drop}
    many = Trainer(make_mesh(*shape), **{f"grpo__{name}": value for name, value in split.items()})
    assert_same(many.gradient(make_batch()), reference())
    assert "Involuntary full rematerialization" not in capfd.readouterr().err  # XLA's word for gathering an array whole


def test_order_of_groups_and_content_of_fillers_do_not_matter():
    batch = make_batch()
    order = np.array([3, 7, 1, 0, 2, 6, 5, 4])
    shuffled = jax.tree.map(lambda x: x[order], batch)
    assert_same(trainer().gradient(shuffled), reference())
    garbage = np.where(batch.mask, batch.responses, 17)
    assert_same(trainer().gradient(dataclasses.replace(batch, responses=garbage)), reference(), tolerance=1e-6)


def test_buckets_do_not_matter():
    wide = Trainer(rollout__prompt_buckets=(32,), rollout__response_buckets=(8,))
    assert_same(wide.gradient(make_batch(extra_length=8, extra_response=2)), reference())


def test_how_wide_a_batch_is_does_not_matter_to_a_constant_denominator():
    """It is the config's largest response, 8, whatever bucket the batch was drawn in."""
    constant = Trainer(grpo__aggregation="constant")
    narrow, wide = (constant.gradient(make_batch(extra_response=extra)) for extra in (0, 2))
    assert_same(wide, narrow)
    batch = make_batch()
    expected = -np.sum(batch.advantages * batch.mask.sum(-1)) / batch.mask.any(-1).sum() / 8
    assert narrow[1]["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_is_computed_again_does_not_matter(remat):
    assert_same(Trainer(model__remat=remat).gradient(make_batch()), reference())


def test_padding_is_cut_off_and_a_bucket_compiles_once():
    reference()
    before = trainer().step.compilations
    assert_same(trainer().gradient(make_batch(extra_length=8, extra_response=2)), reference(), tolerance=1e-6)
    trainer().gradient(make_batch())
    assert trainer().step.compilations == before


VARIANTS = {
    "gspo": {"loss": "gspo", "aggregation": "token_mean", "importance_cap": 1.05, "entropy_coefficient": 0.1},
    "cispo": {"loss": "cispo", "aggregation": "constant", "kl_estimator": "k2", "kl_coefficient": 0.5},
}


@functools.cache
def variant(name, **split):
    return Trainer(**{f"grpo__{field}": value for field, value in {**VARIANTS[name], **split}.items()})


@pytest.mark.parametrize("name", VARIANTS)
def test_micro_batches_do_not_matter_whatever_the_loss(name):
    _, batch = off_policy()
    whole = variant(name).gradient(batch)
    assert_same(variant(name, micro_batch_prompts=2, micro_batch_samples=2).gradient(batch), whole)
    assert relative_difference(whole[0], reference()[0]) > 0.1


def test_dropping_flat_groups_changes_no_gradient_and_looks_at_none_of_them():
    """Without 1, 5 and 6 and the empty 7 four groups are left, two micro-batches.

    The pictures of the others would make any gradient NaN that saw them.
    """
    split = {"grpo__micro_batch_prompts": 2, "grpo__aggregation": "token_mean"}
    batch = make_batch()
    advantages = batch.advantages.copy()
    advantages[[1, 5, 6]] = 0
    batch = dataclasses.replace(batch, advantages=advantages)
    every = Trainer(**split)
    grads, metrics = every.gradient(batch)
    patches = batch.prompts.patches.copy()
    patches[[1, 5, 6]] = np.nan
    batch = dataclasses.replace(batch, prompts=dataclasses.replace(batch.prompts, patches=patches))
    assert np.isnan(every.gradient(batch)[1]["grad_norm"])
    dropped, counted = Trainer(**split, grpo__drop_flat_groups=True).gradient(batch)
    assert relative_difference(dropped, grads) < 2e-5
    assert counted["loss"] == pytest.approx(metrics["loss"], rel=2e-5)
    assert counted["tokens"] == metrics["tokens"] - batch.mask[[1, 5, 6]].sum()


def test_no_token_of_a_dropped_group_has_a_kl_or_an_entropy_term():
    """Its responses fill up rows and micro-batches of others, or do not, by how the batch is cut."""
    _, batch = off_policy()
    advantages, mask = batch.advantages.copy(), batch.mask.copy()
    advantages[2], mask[2] = 0, False
    flat, without = dataclasses.replace(batch, advantages=advantages), dataclasses.replace(batch, mask=mask)
    terms = {"grpo__kl_coefficient": 0.5, "grpo__entropy_coefficient": 0.1, "grpo__micro_batch_prompts": 4}
    whole, split = (Trainer(**terms, grpo__micro_batch_samples=size, grpo__drop_flat_groups=True) for size in (4, 1))
    dropped, (_, expected) = whole.gradient(flat), whole.gradient(without)
    assert_same(split.gradient(flat), dropped)
    for name in ("kl", "entropy", "tokens"):
        assert dropped[1][name] == pytest.approx(expected[name], rel=2e-5)
    share = mask.any(-1).sum() / batch.mask.any(-1).sum()  # the others weigh as before
    assert dropped[1]["loss"] == pytest.approx(expected["loss"] * share, rel=2e-5)


def test_an_entropy_bonus_has_the_gradient_of_the_entropy():
    """Without advantages the loss is the bonus alone; a step up its gradient raises the entropy by its squared norm."""
    batch = dataclasses.replace(make_batch(), advantages=np.zeros((8, 4), np.float32))
    grads, metrics = variant("gspo").gradient(dataclasses.replace(batch, rollout_logps=np.zeros_like(off_policy()[0])))
    assert metrics["loss"] == pytest.approx(-0.1 * metrics["entropy"], rel=1e-5)
    log_probs = functools.partial(
        response_log_probs, tiny.CONFIG, prompts=batch.prompts, responses=batch.responses, mask=batch.mask,
        temperature=0.9, banned_ids=BANNED,
    )  # fmt: skip
    moved = jax.tree.map(lambda x, g: x - np.float32(1e-3) * g, tiny.params(), grads)
    entropy = [np.asarray(jax.jit(log_probs)(params)[1])[batch.mask].mean() for params in (tiny.params(), moved)]
    assert entropy[0] == pytest.approx(metrics["entropy"], rel=1e-5)
    assert 0.1 * (entropy[1] - entropy[0]) == pytest.approx(1e-3 * metrics["grad_norm"] ** 2, rel=0.05)
    assert trainer().gradient(batch)[1]["grad_norm"] == 0


def test_an_adaptive_kl_weight_is_carried_from_step_to_step():
    """The first KL is a tenth above its target, where the weight follows it and is not at its limit yet."""
    batch, control = off_policy()[1], {"kl_coefficient": 0.5, "kl_schedule": "adaptive"}

    def follow(target):
        return Trainer(**{f"grpo__{name}": value for name, value in {**control, "kl_target": target}.items()})

    first = follow(1e3)
    target = float(first.step(first.state(), batch)[1]["kl"]) / 1.1
    adaptive, scale = follow(target), 1.0
    state = adaptive.state()
    for _ in range(3):
        state, metrics = adaptive.step(state, batch)
        assert float(metrics["kl_coefficient"]) == pytest.approx(0.5 * scale)
        scale *= 1 + 0.1 * np.clip(metrics["kl"] / target - 1, -0.2, 0.2)
        assert float(state.kl_scale) == pytest.approx(scale)
        if state.step == 1:
            assert scale == pytest.approx(1.01)
    broken = dataclasses.replace(batch, advantages=np.full_like(batch.advantages, np.inf))
    assert float(adaptive.step(state, broken)[0].kl_scale) == pytest.approx(scale)


def test_nothing_to_learn_changes_nothing():
    batch = make_batch()
    grads, metrics = trainer().gradient(dataclasses.replace(batch, mask=np.zeros_like(batch.mask)))
    assert metrics["loss"] == metrics["grad_norm"] == metrics["tokens"] == 0
    assert all(np.all(grad == 0) for grad in jax.tree.leaves(grads))


@functools.cache
def adam():
    """AdamW, a frozen vision tower, a KL term, two micro-batches, and the authors' way to average."""
    optimizer = make_optimizer(run_config().optimizer, 10)
    overrides = {
        "grpo__aggregation": "micro_batch_mean",
        "model__freeze_vision": True,
        "grpo__micro_batch_prompts": 4,
        "grpo__kl_coefficient": 0.5,
    }
    return Trainer(optimizer=optimizer, **overrides)


@functools.cache
def off_policy():
    """The batch's own log-probs, and the batch with old, reference and rollout ones at some distance from them."""
    batch, mesh = make_batch(), one_device_mesh()
    log_probs = LogProbs(tiny.CONFIG, adam().config, mesh, banned_ids=BANNED)
    own = log_probs(tiny.params(), batch.prompts, batch.responses, batch.mask)
    old, far = own + np.random.default_rng(0).normal(size=(2, *own.shape)).astype(np.float32) * 0.3
    return own, dataclasses.replace(batch, old_logps=old, reference_logps=far, rollout_logps=old + np.float32(0.1))


def test_inputs_of_two_micro_batches_lie_on_the_devices_at_once(monkeypatch):
    events = []

    class Result:
        """Of a micro-batch, of which it is seen when it is waited for."""

        def __init__(self, index: int):
            self.index = index

        def block_until_ready(self):
            events.append(f"wait {self.index}")

        def __array__(self, dtype=None, copy=None):
            return np.zeros((2, 4, 8), np.float32)

    def compute(*args):
        events.append("compute")
        return Result(events.count("compute") - 1)

    log_probs = LogProbs(tiny.CONFIG, run_config(grpo__micro_batch_prompts=2), one_device_mesh())
    log_probs.log_probs = compute
    monkeypatch.setattr(grpo_step, "put_batch", lambda mesh, arrays: events.append("put") or arrays)
    batch = make_batch(extra_response=2)
    log_probs({}, batch.prompts, np.ones_like(batch.responses), np.ones_like(batch.mask))
    first, *later = ("put", "compute"), ("put", "compute"), ("wait 0", "put", "compute"), ("wait 1", "put", "compute")
    assert events == [*first, *(event for events in later for event in events)]


def test_loss_and_metrics_equal_the_pure_functions_on_the_log_probs():
    own, batch = off_policy()
    _, metrics = adam().gradient(batch)
    mask, logp, old, far = (x.reshape(32, -1) for x in (batch.mask, own, batch.old_logps, batch.reference_logps))
    clip = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": 3.0, "aggregation": "micro_batch_mean"}
    loss, expected = policy_loss(logp, old, batch.advantages.reshape(-1), mask, **clip)
    kl = np.asarray(token_kl(logp, far, mask, "k3"))
    loss += 0.5 * np.sum(token_weights(mask, "micro_batch_mean") * kl)
    expected |= {"kl": kl[mask].mean(), "rollout_train_logp_diff": 0.1, "token_mult_prob_error": np.exp(0.1)}
    for name, value in {**expected, "loss": loss}.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert expected["clip_fraction_low"] > 0


def test_a_frozen_vision_tower_stays_bit_for_bit():
    change, _ = adam().gradient(off_policy()[1])
    assert all(np.all(x == 0) for x in jax.tree.leaves(change["vision"]))
    assert all(np.any(x != 0) for x in jax.tree.leaves(change["decoder"]))


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted():
    batch = off_policy()[1]
    advantages = batch.advantages.copy()
    advantages[0, 0] = np.inf
    broken = dataclasses.replace(batch, advantages=advantages)
    state, _ = adam().step(adam().state(), batch)
    before = jax.tree.map(np.array, state)
    state, metrics = adam().step(state, broken)
    assert not np.isfinite(metrics["grad_norm"])
    assert (int(before.step), int(state.step)) == (1, 2)
    assert (int(before.skipped), int(state.skipped), int(metrics["skipped"])) == (0, 1, 1)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (before.params, before.opt_state))
    state, _ = adam().step(state, batch)
    assert relative_difference(state.params["decoder"], before.params["decoder"]) > 1e-4


def test_frozen_vision_has_no_optimizer_state():
    def size(**freeze):
        optimizer = make_optimizer(run_config().optimizer, 10)
        state = abstract_state(tiny.CONFIG, optimizer, one_device_mesh(), **freeze)
        return sum(x.size for x in jax.tree.leaves(state.opt_state))

    assert size() - size(freeze_vision=True) == 2 * sum(x.size for x in jax.tree.leaves(tiny.params()["vision"]))
