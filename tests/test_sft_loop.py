"""Supervised training for real: what a run leaves, resuming bit for bit, the export, a text-only model, learning."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import ADAPTERS, base_params, load_config, merge_adapters
from perception_r1_jax.sft import loop, setup
from perception_r1_jax.sft.config import sft_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training import run_record
from perception_r1_jax.weights import export_huggingface, load_params
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests.grpo_fixtures import relative_difference
from tests.parity import drawing
from tests.training_run import (
    lines,
    made_once,
    one_device_mesh,
    params_of,
    signal_at_the_last_save,
    without_clocks,
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The runs here are about the loop; what eight devices do is tested for the step."""
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Conversations about two pictures: what is asked for decides the answer. One is too long, one row is bad."""
    folder = tmp_path_factory.mktemp("conversations")
    (folder / "a.png").write_bytes(drawing(84, 84, 0))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {letters}?"},
                {"role": "assistant", "content": f"The length of {letters} is {len(letters)}." * (1 + number % 2)},
            ],
            "images": ["a.png"] if number % 3 else [],
        }
        for number, letters in enumerate(("AB", "BC", "CDE", "AC", "BDE", "AD") * 3)
    ]
    rows[4]["messages"][0]["content"] += " really" * 200
    for split, count in (("train", 18), ("val", 6)):
        kept = [json.dumps(row) for row in rows[:count]]
        (folder / f"{split}.jsonl").write_text("\n".join(["{", *kept]))
    return folder


def small_config(data, **fields) -> ConfigDict:
    """Every program of all tests here compiles once thanks to the shared shapes."""
    config = sft_config()
    config.update_from_flattened_dict({
        "steps": 4,
        "data.path": str(data),
        "data.prefetch": 4,
        "model.path": "random",
        "model.dtype": "float32",
        "model.remat": "none",
        "sft.row_tokens": 128,
        "sft.row_windows": 2,
        "sft.rows_per_step": 2,
        "sft.micro_batch_rows": 1,
        "sft.waiting": 2,
        "sft.log_prob_chunk": 64,
        "sft.validate_every": 2,
        "sft.log_every": 1,
        "optimizer.learning_rate": 1e-3,
        "checkpoint.every": 2,
        "checkpoint.keep_best": 1,
        **fields,
    })  # fmt: skip
    return config


make_sft_step, make_sft_scores = made_once(setup.make_sft_step), made_once(setup.make_sft_scores)


def train(config, workdir):
    """Prepares and runs, as scripts/sft.py does, with the programs of the runs before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_sft_step", make_sft_step)
        patch.setattr(setup, "make_sft_scores", make_sft_scores)
        return loop.train(setup.prepare(config, workdir))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The working directory of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", one_device_mesh)
        train(small_config(data), workdir)
    return workdir


def test_a_run_leaves_what_it_did(finished):
    metrics = lines(finished / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert [("validation/loss" in line) for line in metrics] == [False, True, False, True]
    assert all(0 <= metrics[step]["validation/token_accuracy"] <= 1 for step in (1, 3))
    for line in metrics:
        assert line["train/loss"] > 0
        assert line["data/conversations"] >= 2
        assert line["data/filled"] > 0.5
        assert line["compilations/train"] == 1
    result = json.loads((finished / "result.json").read_text())
    assert result["validation/loss"] == metrics[-1]["validation/loss"]
    run = json.loads((finished / "run.json").read_text())
    assert run["config"]["sft"]["row_tokens"] == 128
    assert len(run["hashes"]["model"]) == 64


def test_what_is_left_out_is_told(finished, data, tmp_path, capsys, caplog):
    train(small_config(data, **{"steps": 4, "data.shuffle": False}), tmp_path)
    printed = capsys.readouterr().out
    assert f"{data} (train): 19 rows read, 18 conversations kept" in printed
    assert "skipped, invalid JSON: 1 (train/1:" in printed
    assert f"--checkpoint {tmp_path} --out DIR" in printed
    assert sorted(record.getMessage() for record in caplog.records if "dropped" in record.getMessage()) == [
        "dropped: train/6: prompt above 128 tokens (it has 869)",
        "dropped: val/6: prompt above 128 tokens (it has 869)",
    ]
    assert lines(tmp_path / "metrics.jsonl")[-1]["data/dropped"] == 1


@pytest.mark.parametrize("how", ["signal", "crash"])
def test_a_stopped_run_continues_bit_for_bit(how, data, finished, tmp_path, monkeypatch):
    def stopping(run, batch):
        if int(run.state.step) == 3 and how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        elif int(run.state.step) == 3:
            raise RuntimeError("the machine is gone")
        return measure(run, batch)

    measure = loop.batch_metrics
    monkeypatch.setattr(loop, "batch_metrics", stopping)
    if how == "signal":
        assert train(small_config(data), tmp_path) is None
        assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}
    else:
        with pytest.raises(RuntimeError, match="the machine is gone"):
            train(small_config(data), tmp_path)
    monkeypatch.setattr(loop, "batch_metrics", measure)
    train(small_config(data), tmp_path)
    ours, theirs = lines(tmp_path / "metrics.jsonl"), lines(finished / "metrics.jsonl")
    assert [without_clocks(line) for line in ours] == [without_clocks(line) for line in theirs]
    jax.tree.map(np.testing.assert_array_equal, *(params_of(run / "checkpoints/4") for run in (tmp_path, finished)))


def test_ctrl_c_that_ends_the_reader_of_the_output_saves_the_run(data, tmp_path, monkeypatch):
    """As it does in `python scripts/sft.py ... | tee log`."""

    def stopping(run, batch):
        if int(run.state.step) == 3:
            os.close(reading)
            os.kill(os.getpid(), signal.SIGINT)
        return measure(run, batch)

    measure, (reading, writing) = loop.batch_metrics, os.pipe()
    monkeypatch.setattr(loop, "batch_metrics", stopping)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert train(small_config(data), tmp_path) is None
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"2", "3"}


def test_a_signal_while_the_last_checkpoint_is_written_waits_for_it(data, tmp_path):
    with signal_at_the_last_save():
        result = train(small_config(data), tmp_path)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "checkpoints/4").is_dir()


def test_training_moves_every_parameter(finished):
    mesh, model = make_mesh(devices=jax.devices()[:1]), load_config(finished / "model")
    before = load_params(finished / "random/hf", model, mesh, jnp.float32)
    both = jax.device_get((before, params_of(finished / "checkpoints/4")))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), *both)
    assert min(jax.tree.leaves(moved)) > 0


def test_the_result_leaves_as_a_hugging_face_folder(finished, tmp_path):
    export_huggingface(finished, tmp_path / "hf", "bfloat16")
    mesh, model = make_mesh(devices=jax.devices()[:1]), load_config(tmp_path / "hf")
    exported = load_params(tmp_path / "hf", model, mesh)
    trained = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params_of(finished / "checkpoints/4"))
    jax.tree.map(np.testing.assert_array_equal, exported, trained)
    assert (tmp_path / "hf/tokenizer.json").is_file()


def test_adapters_alone_are_trained_and_leave_merged(data, tmp_path):
    fields = {"lora.modules": ("q", "v", "down"), "lora.rank": 2, "optimizer.learning_rate": 1e-2}
    run = setup.prepare(small_config(data, **fields), tmp_path)
    start = jax.device_get(run.state.params)
    loop.train(run)
    jax.tree.map(np.testing.assert_array_equal, base_params(run.state.params), base_params(start))
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), run.state.params[ADAPTERS], start[ADAPTERS])
    assert min(jax.tree.leaves(moved)) > 0
    export_huggingface(tmp_path, tmp_path / "hf")
    exported = load_params(tmp_path / "hf", load_config(tmp_path / "hf"), run.mesh, jnp.float32)
    assert relative_difference(exported, merge_adapters(run.state.params)) < 1e-6
    assert relative_difference(exported, base_params(start)) > 1e-3


def test_a_finished_run_says_so(data, finished, capsys, monkeypatch):
    before, record = (json.loads((finished / name).read_text()) for name in ("result.json", "run.json"))
    monkeypatch.setattr(run_record, "_commit", lambda: "of a later day")
    after = train(small_config(data), finished)
    assert json.loads((finished / "run.json").read_text()) == record
    assert after["train/loss"] == before["train/loss"]
    assert "has its 4 steps already" in capsys.readouterr().out


def test_another_run_does_not_continue_here(data, finished):
    for field, value in (("sft.rows_per_step", 4), ("sft.waiting", 3), ("seed", 5)):
        with pytest.raises(UserError, match=f"config.{field} was"):
            train(small_config(data, **{field: value}), finished)
    with pytest.raises(UserError, match=r"hashes\.data was"):
        train(small_config(data, **{"data.split": "val", "data.validation_split": "train"}), finished)


def test_a_missing_validation_split_is_told_before_any_work(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "val.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"Set data\.validation_split to one of train\. Or set sft\.validate_conv.* to 0"
    ):
        train(small_config(folder), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_it_learns_and_the_validation_shows_it(data, tmp_path):
    config = small_config(data, **{"steps": 30, "sft.validate_every": 10, "checkpoint.every": 30})
    train(config, tmp_path)
    validated = [line for line in lines(tmp_path / "metrics.jsonl") if "validation/loss" in line]
    assert [line["step"] for line in validated] == [10, 20, 30]
    losses = [line["validation/loss"] for line in validated]
    assert losses[2] < losses[1] < losses[0]
    assert losses[2] < 0.2 * lines(tmp_path / "metrics.jsonl")[0]["train/loss"]
    assert validated[2]["validation/token_accuracy"] > 0.8


def test_a_text_only_model_on_the_world_without_validation(data, tmp_path):
    """As the embedded judge is made: no windows, no vision tower, conversations drawn by name."""
    model = write_random_checkpoint(tmp_path / "model", "qwen2")
    fields = {"model.path": str(model), "data.path": "geometry_world:judge", "sft.row_tokens": 512}
    config = small_config(data, **{"steps": 1, "sft.row_windows": 0, "sft.validate_conversations": 0, **fields})
    train(config, tmp_path / "run")
    (metrics,) = lines(tmp_path / "run/metrics.jsonl")
    assert metrics["data/conversations"] >= 1
    assert metrics["train/loss"] > 0
    assert "validation/loss" not in metrics
