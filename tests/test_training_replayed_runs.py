"""Runs that take saved rollouts instead of drawing their own."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import ModelConfig
from perception_r1_jax.training import loop, setup
from perception_r1_jax.training.replay import read_rollout, write_rollout
from tests.training_run import lines, one_device_mesh, params_of, prepare, small_config, train, without_clocks


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The working directory of a run of two steps, and the folder where its rollouts are."""
    workdir, folder = tmp_path_factory.mktemp("saved"), tmp_path_factory.mktemp("rollouts") / "of/the run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", one_device_mesh)
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
    """Holds and generates nothing: whoever asks it to load weights or to draw gets an AttributeError."""

    config: ModelConfig
    compilations: int = 0

    def unload(self) -> None:
        """Every step lets go of its copy of the weights, and here there is none."""


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
