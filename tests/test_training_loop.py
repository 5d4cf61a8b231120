"""The whole loop for real: what a run leaves, what the next one in its folder may change, and the export."""

from __future__ import annotations

import json
import math
import shutil

import jax
import numpy as np
import pytest

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.errors import UserError
from perception_r1_jax.models import load_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training import run_record, setup
from perception_r1_jax.weights import export_huggingface, load_params
from tests import parity
from tests.training_run import lines, one_device_mesh, params_of, prepare, small_config, train


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)


def test_a_run_leaves_what_the_readme_says(finished):
    assert {path.name for path in finished.iterdir()} >= {
        "run.json", "result.json", "metrics.jsonl", "samples.jsonl", "tensorboard", "checkpoints", "model",
    }  # fmt: skip
    metrics = lines(finished / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    for line in metrics:
        for name in (
            "reward/total",
            "reward/visual",
            "train/loss",
            "train/grad_norm",
            "time/rollout",
            "rollout/tokens",
            "judge/cache_hit_rate",
        ):
            assert math.isfinite(line[name]), name
        assert line["train/rollout_train_logp_diff"] < 1e-4
    for name in ("policy", "judge", "train"):
        assert metrics[-1][f"compilations/{name}"] == metrics[0][f"compilations/{name}"] > 0
    samples = lines(finished / "samples.jsonl")
    assert len(samples) == 3 * 2 * 2
    assert all(len(line["verdicts"]) > 0 and line["judge_status"] == "ok" for line in samples)
    result = json.loads((finished / "result.json").read_text())
    assert result["accuracy_before"] is None
    assert result["rewards"]["reward/visual"] == pytest.approx(metrics[-1]["reward/visual"])
    run = json.loads((finished / "run.json").read_text())
    assert run["config"]["rollout"]["samples_per_prompt"] == 2
    assert len(run["hashes"]["policy"]) == 64


def test_training_moves_every_parameter(finished):
    before = load_params(
        finished / "random/policy/converted", load_config(finished / "model"), make_mesh(devices=jax.devices()[:1])
    )
    both = jax.device_get((before, params_of(finished / "checkpoints/3")))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *both)
    assert min(jax.tree.leaves(moved)) > 0


def test_the_export_has_the_logits_of_the_trained_policy(finished, tmp_path):
    torch = pytest.importorskip("torch")
    from perception_r1_jax.processing import Processor
    from tests.reference import Reference
    from tests.test_models_parity import our_logits

    export_huggingface(finished, tmp_path / "hf")
    processor = Processor.from_directory(tmp_path / "hf")
    prompts = parity.prompts(processor)
    reference = Reference(tmp_path / "hf", processor)
    logits = jax.jit(our_logits, static_argnums=0)(
        load_config(finished / "model"), params_of(finished / "checkpoints/3"), parity.batch(processor, prompts)
    )
    for row, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = reference.logits(prompt).numpy()
        assert parity.relative_error(logits[row, : len(prompt.tokens)], expected) < 1e-4


def test_a_finished_run_says_so_and_keeps_its_result_and_record(finished, capsys, monkeypatch):
    before, record = (json.loads((finished / name).read_text()) for name in ("result.json", "run.json"))
    monkeypatch.setattr(run_record, "_commit", lambda: "of a later day")
    after = train(small_config(), finished)
    assert json.loads((finished / "run.json").read_text()) == record
    assert after["rewards"] == before["rewards"]
    assert after["seconds"] > sum(line["time/step"] for line in lines(finished / "metrics.jsonl")) - 0.1  # rounded
    assert "has its 3 steps already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": 5}, "config.seed was 1 and is 5"),
        ({"rollout.samples_per_prompt": 4}, "config.rollout.samples_per_prompt was 2 and is 4"),
        ({"data.split": "val"}, "hashes.data was"),
    ],
)
def test_another_run_does_not_continue_here(finished, fields, message):
    kept = [finished / "run.json", *(finished / "model").iterdir(), *(finished / "random").rglob("*")]
    before = {path: path.read_bytes() for path in kept if path.is_file()}
    with pytest.raises(UserError, match=message):
        train(small_config(**fields), finished)
    assert {path: path.read_bytes() for path in kept if path.is_file()} == before


def test_a_damaged_record_is_named_and_a_missing_one_told(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "run.json").write_text("")  # as a kill while it was written in place would leave it
    with pytest.raises(UserError, match=rf"{run / 'run.json'} is no JSON .* Repair or remove the file"):
        prepare(small_config(), run)
    (run / "run.json").unlink()
    prepare(small_config(), run).checkpoints.close()
    assert "it has no run.json: whether this is the run that was begun there is not known" in capsys.readouterr().out


def test_what_may_change_is_told(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    train(small_config(**{"steps": 4, "optimizer.learning_rate": 2e-4}), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "changed: config.optimizer.learning_rate was 0.0001 and is 0.0002" in printed
    assert "rollouts       batch over 1 x tensor 1, weights 0.00 GiB a device in float32" in printed
    assert [line["step"] for line in lines(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]


def test_a_random_model_keeps_the_tokenizer_it_was_made_with(finished, tmp_path):
    run, other = shutil.copytree(finished, tmp_path / "run"), shutil.copytree(SMALL_TOKENIZER, tmp_path / "tokenizer")
    (other / "tokenizer.json").write_text("{}")
    prepare(small_config(**{"model.tokenizer": str(other)}), run).checkpoints.close()
    assert (run / "model/tokenizer.json").read_bytes() == (SMALL_TOKENIZER / "tokenizer.json").read_bytes()


def test_verdicts_are_flipped_before_the_reward_sees_them(finished, tmp_path):
    train(small_config(**{"steps": 1, "judge.flip_probability": 1.0}), tmp_path)
    flipped, said = lines(tmp_path / "samples.jsonl"), lines(finished / "samples.jsonl")[:4]
    assert [line["response"] for line in flipped] == [line["response"] for line in said]
    for ours, theirs in zip(flipped, said):
        assert ours["verdicts"] == [1 - verdict for verdict in theirs["verdicts"]]
        assert ours["visual"] == pytest.approx(1 - theirs["visual"], abs=1e-5)
        assert ours["judge_status"] == "ok"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.path": "nowhere"}, "config.model.path = 'nowhere' does not exist"),
        ({"data.path": "nowhere"}, "config.data.path = 'nowhere' does not exist"),
        ({"rollout.replay": "nowhere"}, "config.rollout.replay = 'nowhere' does not exist"),
        ({"rollout.save": __file__}, "config.rollout.save = .* this is a file; name a folder"),
        ({"grpo.micro_batch_samples": 3}, "does not divide 2|must divide 2"),
    ],
)
def test_a_wrong_config_stops_before_any_work(fields, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(small_config(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()
