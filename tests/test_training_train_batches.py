"""From scores to the batches of several updates: shares, masks, the KL in the reward, and what is reported."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from perception_r1_jax.grpo.advantages import group_advantages
from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.models import ADAPTERS
from perception_r1_jax.records import Rollout, Scores
from perception_r1_jax.training import setup
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.train_batches import make_train_batches, take_updates
from tests import tiny
from tests.grpo_fixtures import make_batch, make_prompts, one_device_mesh, run_config

OLD, REFERENCE = np.float32(-1.0), np.float32(-1.5)


def fake_run(**fields):
    """A run whose log-probs are made up: the reference is half a nat below the policy on every token."""

    def add_log_probs(params, batch):
        old, reference = (np.where(batch.mask, logp, 0) for logp in (OLD, REFERENCE))
        return dataclasses.replace(batch, old_logps=old, reference_logps=reference)

    config = run_config(**{f"grpo__{name}": value for name, value in fields.items()})
    state = types.SimpleNamespace(params=None, step=np.array(0), kl_scale=np.array(1.0, np.float32))
    return types.SimpleNamespace(
        config=config,
        mesh=one_device_mesh(),
        state=state,
        add_log_probs=add_log_probs,
        train_step=TrainStep(tiny.CONFIG, config, one_device_mesh(), make_optimizer(config.optimizer, config.steps)),
    )


def case():
    """8 groups of 4 responses; groups 0 and 3 have equal rewards, one response is invalid, every fourth was cut."""
    batch, rng = make_batch(), np.random.default_rng(0)
    total = rng.normal(size=(8, 4)).astype(np.float32)
    total[[0, 3]] = 0.25
    valid = np.ones((8, 4), bool)
    valid[2, 1] = False
    rollout = Rollout(
        batch.responses, batch.mask, batch.responses.astype(np.float32), [["stop"] * 3 + ["length"]] * 8, []
    )
    return Groups([None] * 8, rollout, Scores(np.where(valid, total, 0), {}, valid, [], [], [], {}), make_prompts())


def test_one_update_takes_the_batch_as_it_is():
    groups = case()
    rollout, scores = groups.rollout, groups.scores
    (batch,), advantages = make_train_batches(fake_run(), groups)
    np.testing.assert_array_equal(batch.responses, rollout.tokens)
    np.testing.assert_array_equal(batch.mask, rollout.mask & scores.valid[:, :, None])
    np.testing.assert_array_equal(batch.advantages, group_advantages(scores.total, scores.valid))
    assert np.flatnonzero(advantages.no_signal).tolist() == [0, 3]


def test_masked_truncated_responses_have_no_tokens_but_count_in_their_group():
    groups = case()
    rollout, scores = groups.rollout, groups.scores
    (batch,), advantages = make_train_batches(fake_run(mask_truncated=True), groups)
    assert not np.asarray(batch.mask)[:, 3].any()
    np.testing.assert_array_equal(batch.mask[:, :3], (rollout.mask & scores.valid[:, :, None])[:, :3])
    np.testing.assert_array_equal(advantages.advantages, group_advantages(scores.total, scores.valid))


def test_no_log_probs_are_made_of_dropped_groups_but_for_the_reward_s_kl():
    groups = case()  # the last has no tokens
    for kl_in, read in {"loss": [1, 2, 4, 5, 6], "reward": range(7)}.items():
        run = fake_run(drop_flat_groups=True, kl_coefficient=0.1, kl_in=kl_in, advantages="dr_grpo")
        (batch,), _ = make_train_batches(run, groups)
        assert np.flatnonzero(batch.reference_logps.any((1, 2))).tolist() == list(read)
        np.testing.assert_array_equal(batch.mask, groups.rollout.mask & groups.scores.valid[:, :, None])


@pytest.mark.parametrize(("estimator", "kl"), [("k1", 0.5), ("k2", 0.125), ("k3", np.exp(-0.5) - 0.5)])
@pytest.mark.parametrize("mask_truncated", [False, True])
def test_several_updates_share_the_groups_and_the_reward_s_kl_finds_its_response(mask_truncated, estimator, kl):
    """A response that was cut pays for its KL too, whether its tokens count in the loss or not."""
    groups = case()
    rollout, scores = groups.rollout, groups.scores
    run = fake_run(
        updates_per_batch=2, micro_batch_prompts=2, kl_in="reward", kl_estimator=estimator,
        kl_coefficient=0.1, advantages="dr_grpo", mask_truncated=mask_truncated,
    )  # fmt: skip
    batches, advantages = make_train_batches(run, groups)
    lengths = (rollout.mask & scores.valid[:, :, None]).sum(-1)
    expected = group_advantages(scores.total - np.float32(0.1 * kl) * lengths, scores.valid, kind="dr_grpo")
    np.testing.assert_allclose(advantages.advantages, expected, atol=1e-6)
    assert [len(batch.mask) for batch in batches] == [4, 4]
    for update, batch in enumerate(batches):
        np.testing.assert_array_equal(batch.responses, rollout.tokens[update::2])
        np.testing.assert_array_equal(batch.advantages, advantages.advantages[update::2])
        assert batch.mask[:, 3].any() != mask_truncated


@pytest.mark.parametrize(
    ("weights", "expected"),
    [({"kl_schedule": "dynamic", "kl_final": 0.3}, 0.1 + 0.2 / 3), ({"kl_schedule": "adaptive"}, 0.15)],
)
def test_the_reward_s_kl_has_the_weight_of_its_step(weights, expected):
    """A third of the way from 0.1 to 0.3, and 0.1 times the scale that the run has come to."""
    groups, fields = case(), {"kl_in": "reward", "kl_coefficient": 0.1, "advantages": "dr_grpo"}
    run = fake_run(**fields, **weights)
    run.state.step = np.array((run.config.steps - 1) // 3)
    run.state.kl_scale = np.array(1.5, np.float32)
    _, advantages = make_train_batches(run, groups)
    lengths = (groups.rollout.mask & groups.scores.valid[:, :, None]).sum(-1)
    kl = np.exp(-0.5) - 0.5
    rewards = groups.scores.total - np.float32(expected * kl) * lengths
    np.testing.assert_allclose(
        advantages.advantages, group_advantages(rewards, groups.scores.valid, kind="dr_grpo"), atol=1e-6
    )


def test_updates_have_alike_many_groups_with_signal_where_those_stand_first():
    """As dynamic sampling leaves a batch that it could not fill."""
    groups = case()
    groups.scores.total[:] = np.where(np.arange(8)[:, None] < 4, groups.scores.total + np.arange(4), 0.0)
    batches, advantages = make_train_batches(fake_run(updates_per_batch=4, micro_batch_prompts=2), groups)
    assert advantages.no_signal.tolist() == [False] * 4 + [True] * 4
    assert [int(np.any(batch.advantages, axis=1).sum()) for batch in batches] == [1, 1, 1, 1]


def test_metrics_of_several_updates_are_means_but_for_tokens_and_skipped():
    taken, run = [], fake_run()

    def step(state, batch):
        taken.append((state, batch))
        metrics = {
            "loss": float(batch),
            "entropy": 0.5 if batch == 1 else np.nan,
            "kl": np.nan,
            "tokens": 10.0 * batch,
            "skipped": batch - 1.0,
        }
        return state + 1, jax.tree.map(np.float32, metrics)

    run.state, run.train_step = 0, step
    merged = take_updates(run, [1, 2])
    assert np.isnan(merged.pop("kl"))
    assert merged == {"loss": 1.5, "entropy": 0.5, "tokens": 30.0, "skipped": 1.0}
    assert taken == [(0, 1), (1, 2)]
    assert run.state == 2


@pytest.mark.parametrize(
    ("updates", "coefficient", "modules", "old", "reference"),
    [
        (1, 0.0, (), False, None),
        (2, 0.0, (), True, None),
        (1, 0.1, (), False, "start"),
        (2, 0.1, ("q",), True, "base"),
    ],
)
def test_log_probs_are_computed_again_only_where_an_update_reads_them(
    updates, coefficient, modules, old, reference, monkeypatch
):
    """With a single update a batch its own are the old ones; the reference is read once, and with adapters never."""
    asked, read = [], []
    monkeypatch.setattr(setup, "load_params", lambda *_: read.append("start") or {"w": "start"})
    monkeypatch.setattr(setup, "LogProbs", lambda *_, **__: lambda params, *tokens: asked.append(params) or params["w"])
    fields = {"updates_per_batch": updates, "kl_coefficient": coefficient}
    config = run_config(**{f"grpo__{name}": value for name, value in fields.items()}, lora__modules=modules)
    add = setup._make_log_probs(config, None, tiny.CONFIG, one_device_mesh(), ())
    for params in ({"w": "base", ADAPTERS: 1}, {"w": "base", ADAPTERS: 2}):
        batch = add(params, make_batch())
        assert (batch.old_logps, batch.reference_logps) == ("base" if old else None, reference)
        assert [each.get(ADAPTERS) for each in asked] == [params[ADAPTERS]] * old + [None] * bool(reference)
        asked.clear()
    assert read == ["start"] * (reference == "start")
