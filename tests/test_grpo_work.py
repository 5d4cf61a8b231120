"""Operations of a batch: by brute force over its tokens, and what padding adds."""

from __future__ import annotations

import dataclasses
import types

import jax
import numpy as np
import pytest

from perception_r1_jax.grpo.micro_batches import cut_batch
from perception_r1_jax.grpo.step import TrainStep
from perception_r1_jax.grpo.work import gradient_passes, needed_work, row_work
from perception_r1_jax.models import flops
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.speeds import Speed
from perception_r1_jax.training import utilisation
from perception_r1_jax.training.optimizer import make_optimizer
from tests import tiny
from tests.grpo_fixtures import make_batch, make_prompts, one_device_mesh, run_config


def all_rows(batch, **fields):
    return cut_batch(batch.prompts, batch.mask, run_config(**fields))


def needed(batch):
    return needed_work(tiny.CONFIG, batch)


def test_every_token_counts_with_those_that_it_sees():
    batch = make_batch()
    tokens = pairs = 0
    for length, masks in zip(batch.prompts.lengths, batch.mask):
        tokens += length + masks.sum()
        pairs += sum(range(length))  # of a token and one before it; half of the one with itself follows below
        pairs += sum(length + index for mask in masks for index in range(mask.sum()))
    pairs += tokens / 2
    text = flops.layers_flops(tiny.CONFIG, int(tokens), float(pairs))
    text += flops.head_flops(tiny.CONFIG, int(batch.mask.sum()))
    assert needed(batch).text == pytest.approx(text)


def test_pictures_count_by_patch_window_and_picture():
    """Two pictures of two windows, and one of a single window that is half empty."""
    prompts = tiny.prompt_batch([40, 40], [2, 1], length=40, windows=2)
    ids, valid = prompts.image_ids.copy(), prompts.patch_valid.copy()
    ids[0] = 0
    valid[1, 0, 32:] = False
    batch = make_batch()
    batch = dataclasses.replace(batch, prompts=dataclasses.replace(prompts, image_ids=ids, patch_valid=valid))
    batch = dataclasses.replace(batch, mask=batch.mask[:2])
    expected = flops.patches_flops(tiny.CONFIG.vision, 128 + 32, 2 * 64**2 + 32**2, 128**2 + 32**2)
    assert needed(batch).vision == expected


def test_a_full_batch_needs_what_its_rows_compute_and_others_less():
    prompts = tiny.prompt_batch([32] * 4, [1] * 4, length=32, windows=1)
    batch = dataclasses.replace(make_batch(), prompts=prompts, mask=np.ones((4, 4, 8), bool))
    rows = row_work(tiny.CONFIG, all_rows(batch, grpo__micro_batch_prompts=2))
    assert rows == pytest.approx(needed(batch))
    twice = row_work(tiny.CONFIG, all_rows(batch, grpo__micro_batch_prompts=2, grpo__micro_batch_samples=2))
    assert twice.vision == 2 * rows.vision
    assert twice.text - rows.text == pytest.approx(flops.prompt_flops(tiny.CONFIG, 32, 4))
    short = needed(dataclasses.replace(batch, mask=np.ones((4, 4, 5), bool)))
    assert short.text < rows.text


def metrics_of(seconds=2.0, batch=None, **fields):
    config = run_config(**fields)
    run = types.SimpleNamespace(
        config=config,
        engine=types.SimpleNamespace(config=tiny.CONFIG),
        mesh=make_mesh(devices=jax.devices()[:2]),
        train_step=TrainStep(tiny.CONFIG, config, one_device_mesh(), make_optimizer(config.optimizer, 1)),
    )
    return utilisation.utilisation(run, [batch or make_batch()] * 2, seconds)


def test_a_device_that_is_not_known_has_no_utilisation(monkeypatch):
    monkeypatch.setattr(utilisation, "SPEEDS", {})
    found = metrics_of(grpo__kl_coefficient=0.0)
    work = needed(make_batch())
    assert set(found) == {f"train/tflops{suffix}" for suffix in ("", "_text", "_padded", "_text_padded")}
    assert found["train/tflops"] == pytest.approx(3 * 2 * (work.text + work.vision) / 2.0 / 1e12)
    assert found["train/tflops_text"] == pytest.approx(3 * 2 * work.text / 2.0 / 1e12)
    assert found["train/tflops"] < found["train/tflops_padded"]


def test_utilisation_is_the_share_of_all_devices(monkeypatch):
    monkeypatch.setattr(utilisation, "SPEEDS", {jax.devices()[0].device_kind: Speed(1e12, 1.0, 1.0)})
    found = metrics_of()
    assert found["train/mfu_padded"] == pytest.approx(found["train/tflops_padded"] / 2)


def test_a_frozen_tower_has_no_backward_pass_and_a_reference_one_more(monkeypatch):
    monkeypatch.setattr(utilisation, "SPEEDS", {})
    work = needed(make_batch())
    found = metrics_of(model__freeze_vision=True, grpo__kl_coefficient=0.5)
    assert found["train/tflops"] == pytest.approx(2 * (4 * work.text + 2 * work.vision) / 2.0 / 1e12)


@pytest.mark.parametrize(("modules", "passes"), [(("q", "v"), (2, 1)), (("q", "gate"), (2, 2)), ((), (3, 3))])
def test_a_tower_without_adapters_has_no_backward_pass(modules, passes):
    assert gradient_passes(run_config(lora__modules=modules)) == passes
    assert gradient_passes(run_config(lora__modules=modules, model__freeze_vision=True)) == (passes[0], 1)


def test_groups_that_are_left_out_are_no_work(monkeypatch):
    """They have no advantage; only a KL in the reward still needs their log-probs under the reference policy."""
    monkeypatch.setattr(utilisation, "SPEEDS", {})
    batch = make_batch()
    flat = dataclasses.replace(batch, advantages=np.where(np.arange(8)[:, None] < 4, batch.advantages, 0.0))
    kept = needed(jax.tree.map(lambda x: x[:4], batch))
    fields = {"grpo__drop_flat_groups": True, "grpo__micro_batch_prompts": 1}
    found = metrics_of(batch=flat, grpo__kl_coefficient=0.0, **fields)
    assert found["train/tflops"] == pytest.approx(3 * 2 * sum(kept) / 2.0 / 1e12)
    assert found["train/tflops"] < found["train/tflops_padded"]
    for kl_in, reference in {"loss": kept, "reward": needed(batch)}.items():
        found = metrics_of(batch=flat, grpo__kl_coefficient=0.5, grpo__kl_in=kl_in, **fields)
        assert found["train/tflops"] == pytest.approx(2 * (3 * sum(kept) + sum(reference)) / 2.0 / 1e12)


def test_a_prompt_that_fills_a_row_counts_nothing():
    prompts = make_prompts()
    assert prompts.lengths[7] == 0
    batch = make_batch()
    less = jax.tree.map(lambda x: x[:7], batch)
    assert needed(less) == pytest.approx(needed(batch))
