"""The evaluations of a run: made once before and once after, whatever stops the run in between."""

from __future__ import annotations

import json
import os
import signal
import types
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.items import Item, read_items
from perception_r1_jax.evaluation.summary import fact_changes
from perception_r1_jax.training import evaluating, loop, setup
from perception_r1_jax.training.evaluating import before_and_after
from tests import parity
from tests.training_run import lines, one_device_mesh, prepare, small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four problems to train on and five others."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("val", 5)):
        columns = {
            "problem": [f"<image>How long is A{letter}?" for letter in "BCDEF"[:count]],
            "answer": ["5"] * count,
            "images": [[parity.drawing(56, 84, seed)] for seed in range(count)],
            "visual_key_info": ["<info1>AB is 5.</info1>"] * count,
        }
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def config(data, **fields):
    return small_config(**{
        "steps": 2,
        "data.path": str(data),
        "judge.path": "",
        "reward.function": "tests.training_run:share_of_capitals",  # what a random policy can learn
        "optimizer.learning_rate": 0.01,  # so that the second evaluation is of another policy
        "evaluation.split": "val",
        "evaluation.batch_size": 4,
        "evaluation.max_new_tokens": 8,
        "evaluation.probe_max_new_tokens": 8,
        "evaluation.checker": "tests.stub_checker",
    } | fields)  # fmt: skip


def train(config, workdir):
    """A run on one device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "make_mesh", one_device_mesh)
        return loop.train(prepare(config, workdir))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The working directory of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("evaluated")
    train(config(data), workdir)
    return workdir


def files(workdir):
    return {path.name: path.read_bytes() for path in sorted((workdir / "eval").glob("*.jsonl"))}


def test_a_run_is_evaluated_before_and_after(finished):
    assert list(files(finished)) == ["val-0.jsonl", "val-2.jsonl"]
    before, after = (read_items(finished / "eval" / name) for name in files(finished))
    assert [item.problem_id for item in before] == [item.problem_id for item in after]
    assert [item.response for item in before] != [item.response for item in after]
    result = json.loads((finished / "result.json").read_text())
    assert result["perception_before"] == sum(item.perception for item in before) / 5
    assert result["probe_after"] == sum(item.probe for item in after) / 5
    changes = [(item.perception, later.perception) for item, later in zip(before, after)]
    assert result["mcnemar_perception"]["gained"] == changes.count((0.0, 1.0))
    assert result["mcnemar_perception"]["lost"] == changes.count((1.0, 0.0))
    assert result["facts"] == fact_changes(before, after)
    evaluating_seconds = sum(result[f"evaluation_{side}"]["seconds"] for side in ("before", "after"))
    stepping_seconds = sum(line["time/step"] for line in lines(finished / "metrics.jsonl"))
    assert result["seconds"] > evaluating_seconds + stepping_seconds - 0.2


def test_a_stopped_run_does_not_evaluate_its_start_again(data, finished, tmp_path, monkeypatch):
    append = loop.append_samples

    def stopping(path, step, *args):
        append(path, step, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "append_samples", stopping)
    assert train(config(data), tmp_path) is None
    written = (tmp_path / "eval/val-0.jsonl").stat().st_mtime_ns
    assert list(files(tmp_path)) == ["val-0.jsonl"]
    monkeypatch.setattr(loop, "append_samples", append)
    result = train(config(data), tmp_path)
    assert (tmp_path / "eval/val-0.jsonl").stat().st_mtime_ns == written
    assert files(tmp_path) == files(finished)
    assert result["facts"] == json.loads((finished / "result.json").read_text())["facts"]


def test_other_problems_on_the_way_are_refused(data, finished):
    with pytest.raises(UserError, match=r"hashes\.evaluation was .* Set them back"):
        train(config(data, **{"evaluation.problems": 4}), finished)


def test_a_checker_that_cannot_be_imported_stops_before_any_work(data, tmp_path):
    with pytest.raises(UserError, match=r"config\.evaluation\.checker 'no\.such' cannot be imported"):
        train(config(data, **{"evaluation.checker": "no.such"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Loaded:
    """An engine that only remembers its parameters."""

    params = None

    def load(self, params):
        self.params = params

    def unload(self):
        self.params = None


class Stand:
    """A run whose policy answers with the number of steps it has done, and whose steps only count."""

    def __init__(self, workdir, monkeypatch, step=0, steps=4, evaluation="val"):
        self.made, self.stop_in, self.workdir, self.step = [], None, workdir, step
        self.console = Console(record=True)
        self.config = types.SimpleNamespace(steps=steps)
        self.evaluation = types.SimpleNamespace(name=evaluation) if evaluation else None
        self.engine = Loaded()
        self.state = types.SimpleNamespace(params="master")
        self.checkpoints, self.processor = nullcontext(), None
        monkeypatch.setattr(evaluating, "evaluate", self.evaluate)
        monkeypatch.setattr(loop, "take_steps", self.take_steps)
        monkeypatch.setattr(loop, "_write_result", before_and_after)

    def evaluate(self, evaluation, engine, processor, console, on_progress):
        assert engine.params == "master"
        self.made.append(self.step)
        if self.stop_in == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
        on_progress(0)
        return [Item("p", f"after {self.step}", "stop", accuracy=1.0)]

    def take_steps(self, _, stop):
        self.step = max(self.step, self.config.steps)
        return True

    def train(self):
        """Problem p's responses before and after, None where the run was stopped."""
        sides = loop.train(self)
        assert self.engine.params is None
        return sides and [side and side.items[0].response for side in sides]


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    begun = Stand(tmp_path, monkeypatch)
    assert begun.train() == ["after 0", "after 4"]
    again = Stand(tmp_path, monkeypatch, step=4)
    assert (again.train(), again.made) == (["after 0", "after 4"], [])
    further = Stand(tmp_path, monkeypatch, step=4, steps=6)
    assert (further.train(), further.made) == (["after 0", "after 6"], [6])
    assert list(files(tmp_path)) == ["val-0.jsonl", "val-4.jsonl", "val-6.jsonl"]
    assert "evaluation after step 6: 1 problems in 0 s: accuracy 100.0%" in further.console.export_text()


def test_what_another_run_left_is_forgotten(tmp_path, monkeypatch):
    Stand(tmp_path, monkeypatch, steps=8).train()
    resumed = Stand(tmp_path, monkeypatch, step=3)
    assert (resumed.train(), resumed.made) == (["after 0", "after 4"], [4])
    assert list(files(tmp_path)) == ["val-0.jsonl", "val-4.jsonl"]
    begun = Stand(tmp_path, monkeypatch, steps=2)
    assert (begun.train(), begun.made) == (["after 0", "after 2"], [0, 2])
    assert list(files(tmp_path)) == ["val-0.jsonl", "val-2.jsonl"]


@pytest.mark.parametrize("step", [0, 4])
def test_a_stop_within_an_evaluation_leaves_it_for_the_next_time(step, tmp_path, monkeypatch):
    stopped = Stand(tmp_path, monkeypatch)
    stopped.stop_in = step
    assert stopped.train() is None
    assert list(files(tmp_path)) == (["val-0.jsonl"] if step else [])
    assert "stopped during an evaluation; the same command begins it again." in stopped.console.export_text()
    assert Stand(tmp_path, monkeypatch, step=step).train() == ["after 0", "after 4"]


def test_a_run_without_an_evaluation_makes_none(tmp_path, monkeypatch):
    plain = Stand(tmp_path, monkeypatch, evaluation=None)
    assert (plain.train(), plain.made, files(tmp_path)) == ([None, None], [], {})
    late = Stand(tmp_path, monkeypatch, step=2)  # whose start nobody has evaluated
    assert late.train() == [None, "after 4"]
