"""Runs of the whole loop with other options, other data, on more devices, and long enough to learn."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import load_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training import setup
from tests.training_run import lines, one_device_mesh, params_of, small_config, train, without_clocks


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)


def test_options_of_a_run(tmp_path):
    config = small_config(**{
        "steps": 1,
        "judge.path": "",
        "grpo.kl_coefficient": 0.1,
        "model.freeze_vision": True,
        "reward.function": "tests.training_run:length_of_family",
        "reward.custom_weight": 0.01,
    })  # fmt: skip
    train(config, tmp_path)
    (metrics,) = lines(tmp_path / "metrics.jsonl")
    assert metrics["train/kl"] == pytest.approx(0, abs=1e-6)  # the first step starts at the reference
    assert metrics["reward/custom"] >= 3  # letters of the shortest name of a family
    assert metrics["reward/visual"] is None


def test_a_stop_string_that_never_ends_a_response_ends_the_run_before_it_starts(tmp_path):
    with pytest.raises(UserError, match=r"rollout\.stop_strings has '<\|im_end\|>'"):
        setup.prepare(small_config(**{"rollout.stop_strings": ("<|im_end|>",)}), tmp_path)


EVERYTHING = {
    "steps": 2,
    "grpo.updates_per_batch": 2,
    "grpo.loss": "gspo",
    "grpo.advantages": "rloo",
    "grpo.aggregation": "token_mean",
    "grpo.importance_cap": 2.0,
    "grpo.kl_coefficient": 0.05,
    "grpo.kl_estimator": "k1",
    "grpo.kl_in": "reward",
    "grpo.kl_schedule": "adaptive",
    "grpo.entropy_coefficient": 0.01,
    "grpo.drop_flat_groups": True,
    "reward.overlong_tokens": 4,
    "reward.function": "tests.training_run:share_of_capitals",
}


def test_a_run_with_every_option_of_the_loss_continues_bit_for_bit(tmp_path):
    train(small_config(**EVERYTHING), tmp_path / "whole")
    whole = lines(tmp_path / "whole/metrics.jsonl")
    assert whole[0]["train/kl"] != 0  # its second update is not at the reference any more
    assert whole[0]["train/kl_coefficient"] == pytest.approx(0.05 * (1 + 0.98) / 2)
    assert whole[0]["train/importance_mean"] == pytest.approx(1, abs=1e-3)
    assert -1 <= whole[0]["reward/overlong"] < 0
    run = shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(run / "checkpoints/2")
    train(small_config(**EVERYTHING), run)
    assert [without_clocks(line) for line in lines(run / "metrics.jsonl")] == [without_clocks(line) for line in whole]
    trained = (params_of(path / "checkpoints/2") for path in (tmp_path / "whole", run))
    jax.tree.map(np.testing.assert_array_equal, *trained)


@pytest.mark.usefixtures("compiled_anew")
def test_eight_devices_take_the_step_of_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", make_mesh)
    train(small_config(**{"steps": 1, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}), tmp_path)
    (ours,), theirs = lines(tmp_path / "metrics.jsonl"), lines(finished / "metrics.jsonl")[0]
    for name in ("reward/total", "rollout/tokens", "train/entropy", "train/grad_norm", "train/update_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    sampled = [[line["response"] for line in lines(run / "samples.jsonl")[:4]] for run in (tmp_path, finished)]
    assert sampled[0] == sampled[1]


def test_real_problems_and_the_real_tokenizer(shared_data, tmp_path):
    config = small_config(**{
        "steps": 1,
        "data.path": str(shared_data / "geometry3k"),
        "model.tokenizer": str(shared_data / "qwen2_5_vl_tokenizer"),
        "judge.prompt": "",  # the package's own
        "judge.max_prompt_tokens": 3072,
        "rollout.prompt_buckets": (384,),
        "rollout.window_buckets": (24,),
    })  # fmt: skip
    train(config, tmp_path)
    samples = lines(tmp_path / "samples.jsonl")
    assert all(line["problem_id"].startswith("geometry3k/train/") for line in samples)
    assert {line["judge_status"] for line in samples} == {"ok"}
    assert load_config(tmp_path / "model").vocab_size >= 151_665


def test_grpo_learns_what_is_rewarded(tmp_path):
    config = small_config(**{
        "steps": 24,
        "checkpoint.every": 24,
        "judge.path": "",
        "reward.function": "tests.training_run:share_of_capitals",
        "rollout.prompts_per_step": 4,
        "rollout.samples_per_prompt": 8,
        "grpo.micro_batch_prompts": 4,
        "grpo.micro_batch_samples": 8,
        "optimizer.learning_rate": 5e-3,
    })  # fmt: skip
    train(config, tmp_path)
    rewards = [line["reward/custom"] for line in lines(tmp_path / "metrics.jsonl")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15
