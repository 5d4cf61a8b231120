"""The whole loop for real: what a run leaves, resuming bit for bit, the export, and learning."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import debug
from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.models import ModelConfig, load_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training import loop, setup
from perception_r1_jax.training.replay import read_rollout, write_rollout
from perception_r1_jax.training.setup import prepare
from perception_r1_jax.weights import export_huggingface, load_params
from tests import parity


def small_config(**fields) -> ConfigDict:
    """The debug run, smaller: every program of all tests here compiles once thanks to the shared shapes."""
    config = debug.get_config()
    config.steps = 3
    config.checkpoint.every = 1
    config.rollout.prompts_per_step = 2
    config.rollout.samples_per_prompt = 2
    config.rollout.prompt_buckets = (256,)
    config.rollout.window_buckets = (9,)
    config.rollout.response_buckets = (8,)
    config.judge.batch_size = 4
    config.grpo.micro_batch_prompts = 1
    config.grpo.micro_batch_samples = 2
    config.mesh.fsdp = 1
    config.reward.workers = 1
    config.update_from_flattened_dict(fields)
    return config


def train(config, workdir):
    """Prepares and runs, as scripts/train.py does."""
    return loop.train(prepare(config, workdir))


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The runs here are about the loop; what eight devices do is tested for the engine and the step."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(setup, "make_mesh", lambda **sizes: make_mesh(**sizes, devices=devices))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The working directory of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", lambda **sizes: make_mesh(**sizes, devices=jax.devices()[:1]))
        train(small_config(), workdir)
    return workdir


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def params_of(directory):
    mesh = make_mesh(devices=jax.devices()[:1])
    return load_params(directory, load_config(directory.parent.parent / "model"), mesh, jnp.float32)


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


@pytest.mark.parametrize("how", ["signal", "crash"])
def test_a_stopped_run_continues_bit_for_bit(how, finished, tmp_path, monkeypatch):
    def stopping(path, step, *args):
        append(path, step, *args)
        if step == 2 and how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif step == 2:
            raise RuntimeError("the machine is gone")

    append = loop.append_samples
    monkeypatch.setattr(loop, "append_samples", stopping)
    every = {"checkpoint.every": 3} if how == "signal" else {}
    if how == "signal":
        assert train(small_config(**every), tmp_path) is None
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    else:
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train(small_config(), tmp_path)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    monkeypatch.setattr(loop, "append_samples", append)
    assert (
        train(small_config(**every), tmp_path)["rewards"]
        == json.loads((finished / "result.json").read_text())["rewards"]
    )
    for name in ("metrics.jsonl", "samples.jsonl"):
        ours, theirs = lines(tmp_path / name), lines(finished / name)
        assert [without_clocks(line) for line in ours] == [without_clocks(line) for line in theirs]
    trained = (params_of(run / "checkpoints/3") for run in (tmp_path, finished))
    jax.tree.map(np.testing.assert_array_equal, *trained)


@pytest.mark.parametrize("step", [1, 2])
def test_a_stop_within_a_rollout_gives_it_up_and_the_run_continues_bit_for_bit(
    step, finished, tmp_path, monkeypatch, capsys
):
    """The rollout of that step is under way when the signal comes; it is drawn anew later."""
    draw, draws = loop.roll_out, []

    def stopping(*args):
        draws.append(args)
        if len(draws) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(*args)

    monkeypatch.setattr(loop, "roll_out", stopping)
    assert train(small_config(**{"checkpoint.every": 3}), tmp_path) is None
    told = "stopped before the first step was done" if step == 1 else "stopped after step 1, which is saved"
    assert told in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"] * (step - 1)
    assert len(draws) == step
    monkeypatch.setattr(loop, "roll_out", draw)
    train(small_config(**{"checkpoint.every": 3}), tmp_path)
    assert lines(tmp_path / "samples.jsonl") == lines(finished / "samples.jsonl")
    jax.tree.map(np.testing.assert_array_equal, *(params_of(run / "checkpoints/3") for run in (tmp_path, finished)))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The working directory of a run of two steps, and the folder where its rollouts are."""
    workdir, folder = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("rollouts") / "of/the run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", lambda **sizes: make_mesh(**sizes, devices=jax.devices()[:1]))
        train(small_config(**{"steps": 2, "rollout.save": str(folder)}), workdir)
    return workdir, folder


def test_a_replayed_run_takes_the_same_updates_bit_for_bit_and_draws_nothing(saved, tmp_path, capsys):
    workdir, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["step-000001.npz", "step-000002.npz"]
    run = prepare(small_config(**{"steps": 2, "rollout.replay": str(folder)}), tmp_path)
    run.engine = NoEngine(run.engine.config)
    loop.train(run)
    for name in ("metrics.jsonl", "samples.jsonl"):
        ours, theirs = lines(tmp_path / name), lines(workdir / name)
        assert [without_clocks(line) for line in ours] == [without_clocks(line) for line in theirs]
    jax.tree.map(np.testing.assert_array_equal, *(params_of(run / "checkpoints/2") for run in (tmp_path, workdir)))
    assert f"step 2 replays the rollout in {folder / 'step-000002.npz'}" in capsys.readouterr().out


@dataclasses.dataclass
class NoEngine:
    """Generates nothing: whoever asks it gets an AttributeError."""

    config: ModelConfig
    compilations: int = 0


def test_an_edited_file_shows_in_the_rewards_of_its_step_and_the_other_steps_draw(saved, tmp_path):
    workdir, folder = saved
    second = read_rollout(folder / "step-000002.npz")
    texts = [list(row) for row in second.rollout.texts]
    texts[1][0] = "<think>\nAB is 5.\n</think>\n<answer>\n\\boxed{5}\n</answer>"
    edited = dataclasses.replace(second, rollout=dataclasses.replace(second.rollout, texts=texts))
    write_rollout(tmp_path / "edited.npz", edited)
    train(small_config(**{"steps": 2, "rollout.replay": str(tmp_path / "edited.npz")}), tmp_path / "run")
    ours, theirs = lines(tmp_path / "run/samples.jsonl"), lines(workdir / "samples.jsonl")
    assert ours[:4] == theirs[:4]
    assert ours[6]["response"] == texts[1][0]
    assert (ours[6]["format"], theirs[6]["format"]) == (1.0, 0.0)
    assert ours[6]["tokens"] == theirs[6]["tokens"]
    kept = ("response", "format", "accuracy", "visual", "verdicts")
    assert all(ours[line][name] == theirs[line][name] for line in (4, 5, 7) for name in kept)


def test_a_run_may_go_on_with_replayed_rollouts_and_says_so(saved, tmp_path, capsys):
    workdir, folder = saved
    run = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/2")
    train(small_config(**{"steps": 2, "rollout.replay": str(folder / "step-000002.npz")}), run)
    assert f"changed: config.rollout.replay was '' and is '{folder / 'step-000002.npz'}'" in capsys.readouterr().out
    assert lines(run / "samples.jsonl") == lines(workdir / "samples.jsonl")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"seed": 2},
            "has the problem '.+' in place 0 where this run's batch has '.+'. Replay it with the data",
        ),
        ({"rollout.samples_per_prompt": 4}, "this run has 2 prompts x 4 samples of at most 8 tokens"),
    ],
)
def test_a_rollout_of_another_batch_is_refused(saved, tmp_path, fields, message):
    _, folder = saved
    with pytest.raises(UserError, match=message):
        train(small_config(**{"steps": 1, "rollout.replay": str(folder), **fields}), tmp_path)
    assert not (tmp_path / "checkpoints").exists() or not list((tmp_path / "checkpoints").iterdir())


def without_clocks(line):
    """Without what says how a step was computed, not what came of it."""
    how = (*(f"rollout/{name}" for name in GenerationStats().metrics()), "judge/cache_hit_rate")
    return {k: v for k, v in line.items() if not k.startswith(("time/", "memory/", "compilations", *how))}


def test_training_moves_every_parameter(finished):
    before = load_params(
        finished / "random/policy/converted", load_config(finished / "model"), make_mesh(devices=jax.devices()[:1])
    )
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), before, params_of(finished / "checkpoints/3"))
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


def test_a_finished_run_says_so_and_keeps_its_result(finished, capsys):
    before = json.loads((finished / "result.json").read_text())
    after = train(small_config(), finished)
    assert after["rewards"] == before["rewards"]
    assert after["seconds"] >= before["seconds"] - 60
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
    record = (finished / "run.json").read_text()
    with pytest.raises(UserError, match=message):
        train(small_config(**fields), finished)
    assert (finished / "run.json").read_text() == record


def test_what_may_change_is_told(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    train(small_config(**{"steps": 4, "optimizer.learning_rate": 2e-4}), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "changed: config.optimizer.learning_rate was 0.0001 and is 0.0002" in printed
    assert [line["step"] for line in lines(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]


def test_a_random_model_keeps_the_tokenizer_it_was_made_with(finished, tmp_path):
    run, other = shutil.copytree(finished, tmp_path / "run"), shutil.copytree(SMALL_TOKENIZER, tmp_path / "tokenizer")
    (other / "tokenizer.json").write_text("{}")
    prepare(small_config(**{"model.tokenizer": str(other)}), run).checkpoints.close()
    assert (run / "model/tokenizer.json").read_bytes() == (SMALL_TOKENIZER / "tokenizer.json").read_bytes()


def test_options_of_a_run(tmp_path):
    config = small_config(**{
        "steps": 1,
        "judge.path": "",
        "grpo.kl_coefficient": 0.1,
        "model.freeze_vision": True,
        "reward.function": "tests.test_training_loop:length_of_family",
        "reward.custom_weight": 0.01,
    })  # fmt: skip
    train(config, tmp_path)
    (metrics,) = lines(tmp_path / "metrics.jsonl")
    assert metrics["train/kl"] == pytest.approx(0, abs=1e-6)  # the first step starts at the reference
    assert metrics["reward/custom"] >= 3  # letters of the shortest name of a family
    assert metrics["reward/visual"] is None


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
    "reward.function": "tests.test_training_loop:share_of_capitals",
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


def test_dynamic_sampling_carries_groups_over_and_continues_bit_for_bit(tmp_path):
    fields = {
        "rollout.max_rounds": 3,
        "reward.function": "tests.test_training_loop:capitals_in_some_problems",
        "judge.path": "",
        "grpo.importance_cap": 2.0,
    }
    train(small_config(**fields), tmp_path / "whole")
    whole = lines(tmp_path / "whole/metrics.jsonl")
    assert max(line["rollout/rounds"] for line in whole) > 1
    assert [line["rollout/carried_in"] for line in whole] == [0, *(line["rollout/carried_out"] for line in whole[:-1])]
    carrying = [line["step"] for line in whole[:-1] if line["rollout/carried_out"]]
    assert carrying
    samples = lines(tmp_path / "whole/samples.jsonl")
    assert len(samples) == 3 * 2 * 2
    carried = {path.name for path in (tmp_path / "whole/carried").iterdir()}
    assert carried == {f"step-{step:06d}.npz" for step in carrying if step >= 2}  # two checkpoints are kept
    run = shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for step in range(carrying[0] + 1, 4):
        shutil.rmtree(run / f"checkpoints/{step}")
    train(small_config(**fields), run)
    assert lines(run / "samples.jsonl") == samples
    trained = (params_of(path / "checkpoints/3") for path in (tmp_path / "whole", run))
    jax.tree.map(np.testing.assert_array_equal, *trained)


def test_verdicts_are_flipped_before_the_reward_sees_them(finished, tmp_path):
    train(small_config(**{"steps": 1, "judge.flip_share": 1.0}), tmp_path)
    flipped, said = lines(tmp_path / "samples.jsonl"), lines(finished / "samples.jsonl")[:4]
    assert [line["response"] for line in flipped] == [line["response"] for line in said]
    for ours, theirs in zip(flipped, said):
        assert ours["verdicts"] == [1 - verdict for verdict in theirs["verdicts"]]
        assert ours["visual"] == pytest.approx(1 - theirs["visual"], abs=1e-5)
        assert ours["judge_status"] == "ok"


def test_eight_devices_take_the_step_of_one(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", make_mesh)
    train(small_config(**{"steps": 1, "mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}), tmp_path)
    (ours,), theirs = lines(tmp_path / "metrics.jsonl"), lines(finished / "metrics.jsonl")[0]
    for name in ("reward/total", "rollout/tokens", "train/entropy", "train/grad_norm", "train/update_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    sampled = [[line["response"] for line in lines(run / "samples.jsonl")[:4]] for run in (tmp_path, finished)]
    assert sampled[0] == sampled[1]


def length_of_family(row, response):
    """A reward of the user's own, which reads a column of the problem's row."""
    return float(len(row["family"]))


def test_real_problems_and_the_real_tokenizer(shared_data, tmp_path):
    config = small_config(**{
        "steps": 1,
        "data.path": str(shared_data / "geometry3k"),
        "model.tokenizer": str(shared_data / "qwen2_5_vl_tokenizer"),
        "rollout.prompt_buckets": (384,),
        "rollout.window_buckets": (24,),
    })  # fmt: skip
    train(config, tmp_path)
    samples = lines(tmp_path / "samples.jsonl")
    assert all(line["problem_id"].startswith("geometry3k/train/") for line in samples)
    assert {line["judge_status"] for line in samples} == {"ok"}
    assert load_config(tmp_path / "model").vocab_size >= 151_665


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


def test_grpo_learns_what_is_rewarded(tmp_path):
    config = small_config(**{
        "steps": 18,
        "checkpoint.every": 18,
        "judge.path": "",
        "reward.function": "tests.test_training_loop:share_of_capitals",
        "rollout.prompts_per_step": 4,
        "rollout.samples_per_prompt": 8,
        "grpo.micro_batch_prompts": 4,
        "grpo.micro_batch_samples": 8,
        "optimizer.learning_rate": 5e-3,
    })  # fmt: skip
    train(config, tmp_path)
    rewards = [line["reward/custom"] for line in lines(tmp_path / "metrics.jsonl")]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15


def capitals_in_some_problems(row, response):
    """Another such reward, which is the same for all responses to most problems."""
    return share_of_capitals(row, response) if zlib.crc32(row["problem"].encode()) % 5 == 4 else 0.5


def share_of_capitals(row, response):
    """A reward that a model of random weights can learn within seconds."""
    return sum(letter.isupper() for letter in response) / max(len(response), 1)
