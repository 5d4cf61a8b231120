"""A run that was stopped, wherever, continues bit for bit."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.errors import UserError
from perception_r1_jax.inference import Engine
from perception_r1_jax.training import loop, setup
from perception_r1_jax.training.continuing import changes_since
from perception_r1_jax.training.run_record import make_record, write_record
from tests.training_run import (
    lines,
    one_device_mesh,
    params_of,
    signal_at_the_last_save,
    small_config,
    train,
    without_clocks,
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)


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


def test_a_signal_while_the_last_checkpoint_is_written_waits_for_it(tmp_path):
    with signal_at_the_last_save():
        result = train(small_config(steps=1), tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "checkpoints/1").is_dir()


@pytest.mark.parametrize("step", [1, 2])
def test_a_stop_within_a_rollout_gives_it_up_and_the_run_continues_bit_for_bit(
    step, finished, tmp_path, monkeypatch, capsys
):
    """Its first tokens are drawn when the signal comes; it is drawn anew later."""
    draw, draws, looks = loop.roll_out, [], []

    def stopping(*args):
        *before, on_progress, on_groups = args

        def look(finished):
            if len(draws) == step:
                looks.append(finished)
                signal.raise_signal(signal.SIGTERM)
            on_progress(finished)

        draws.append(args)
        return draw(*before, look, on_groups)

    monkeypatch.setattr(loop, "roll_out", stopping)
    assert train(small_config(**{"checkpoint.every": 3}), tmp_path) is None
    told = "stopped before the first step was done" if step == 1 else "stopped after step 1, which is saved"
    assert told in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"] * (step - 1)
    assert len(draws) == step
    assert looks == [0], "nothing was finished, and no further stretch was drawn"
    monkeypatch.setattr(loop, "roll_out", draw)
    train(small_config(**{"checkpoint.every": 3}), tmp_path)
    assert lines(tmp_path / "samples.jsonl") == lines(finished / "samples.jsonl")
    jax.tree.map(np.testing.assert_array_equal, *(params_of(run / "checkpoints/3") for run in (tmp_path, finished)))


def test_dynamic_sampling_carries_groups_over_and_continues_bit_for_bit(tmp_path, capsys):
    fields = {
        "rollout.max_rounds": 3,
        "reward.function": "tests.training_run:capitals_in_some_problems",
        "judge.path": "",
        "grpo.importance_cap": 2.0,
    }
    with mock.patch.object(Engine, "load", autospec=True, side_effect=Engine.load) as load:
        train(small_config(**fields), tmp_path / "whole")
    whole = lines(tmp_path / "whole/metrics.jsonl")
    assert max(line["rollout/rounds"] for line in whole) > 1
    assert load.call_count == len(whole), "the weights that serve are made once a step, however often it draws"
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
    # Under other rewards what was carried over would not be comparable with what the next step draws.
    shutil.rmtree(run / "checkpoints/3")
    shutil.copytree(tmp_path / "whole/carried", run / "carried", dirs_exist_ok=True)
    capsys.readouterr()
    train(small_config(**fields | {"reward.function": ""}), run)
    assert "carried over, if anything, is left out: config.reward.function changed" in capsys.readouterr().out
    assert lines(run / "metrics.jsonl")[-1]["rollout/carried_in"] == 0


@pytest.mark.parametrize(
    ("section", "field", "value"), [("hashes", "policy", "b"), ("config.model", "dtype", "float32")]
)
def test_a_run_with_a_kl_term_cannot_change_its_reference(section, field, value, tmp_path):
    """It is the policy that the run started from; without such a term another may be named, as after an export."""
    config = default_config()
    write_record(tmp_path, make_record(config, policy="a"))

    def changed(coefficient):
        config.grpo.kl_coefficient = coefficient
        record = json.loads(json.dumps(make_record(config, policy="a")))
        functools.reduce(dict.get, section.split("."), record)[field] = value
        return record

    assert f"{section}.{field}" in changes_since(tmp_path, changed(0.0))
    with pytest.raises(UserError, match=f"{section}.{field} was"):
        changes_since(tmp_path, changed(0.1))
