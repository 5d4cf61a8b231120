"""The runs one after another: what is done is not repeated, what is stopped goes on, what fails says so."""

from __future__ import annotations

import fcntl
import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from perception_r1_jax.claim.running import record_again, run_all
from perception_r1_jax.errors import UserError
from tests.claim_run import plan, recorded, write_workdir

FAKE = Path(__file__).with_name("fake_train.py")


class Bench:
    """Three runs whose trainings a script only pretends."""

    def __init__(self, folder: Path):
        self.folder, self.console = folder, Console(file=io.StringIO(), soft_wrap=True, width=200)
        self.runs = plan(folder, ["visual", "accuracy_only"], [0]) + plan(folder, ["visual"], [1])
        for run in self.runs:
            write_workdir(run)
            (folder / "fake" / "finished").mkdir(parents=True, exist_ok=True)
            run.workdir.rename(folder / "fake" / "finished" / run.name)

    def run(self) -> bool:
        return run_all(self.runs, FAKE, self.console)

    def misbehave(self, how: str) -> None:
        (self.folder / "fake" / how).touch()

    def behave(self) -> None:
        for how in ("crash", "signal", "signal_late"):
            (self.folder / "fake" / how).unlink(missing_ok=True)

    @property
    def calls(self) -> list[str]:
        path = self.folder / "fake" / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def printed(self) -> str:
        return self.console.file.getvalue()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_TRAIN", str(tmp_path / "fake"))
    return Bench(tmp_path)


def test_all_runs_are_trained_and_recorded_once(bench):
    assert bench.run()
    assert bench.calls == ["visual-0", "accuracy_only-0", "visual-1"]
    assert all(run.record.is_file() for run in bench.runs)
    call = (bench.folder / "fake" / "calls").read_text().splitlines()[1]
    assert call == "accuracy_only-0 --config.seed=0 --config.reward.visual_weight=0.0 --config.judge.path="
    assert bench.run()
    assert len(bench.calls) == 3


def test_a_terminal_s_ctrl_c_does_not_reach_the_training_by_itself(bench):
    bench.run()
    assert int((bench.folder / "fake" / "session").read_text()) != os.getsid(0)


def test_a_run_whose_record_is_there_is_not_repeated_without_its_folder(bench):
    assert bench.run()
    for run in bench.runs:
        run.workdir.rename(run.workdir.with_name(f"gone-{run.name}"))
    assert bench.run()
    assert len(bench.calls) == 3


def test_a_finished_run_is_recorded_without_training(bench):
    write_workdir(bench.runs[0])
    assert bench.run()
    assert bench.calls == ["accuracy_only-0", "visual-1"]
    assert bench.runs[0].record.is_file()


def test_the_start_says_what_is_there_and_how_long_the_rest_takes(bench):
    recorded(bench.runs[0])
    write_workdir(bench.runs[1])
    (bench.runs[1].workdir / "result.json").unlink()
    bench.run()
    lines = [" ".join(line.split()) for line in bench.printed.splitlines()[:4]]
    assert lines == [
        "The ablation: 3 runs, 2 to train, about 16 min 40 s (8 min 20 s a run, measured on 1).",
        "recorded already 1 visual-0",
        "begun, to go on 1 accuracy_only-0",
        "to begin 1 visual-1",
    ]


def test_before_anything_is_measured_a_run_takes_six_minutes(bench):
    bench.misbehave("crash")
    with pytest.raises(UserError):
        bench.run()
    assert "3 to train, about 18 min 0 s (6 min 0 s a run, on 2 cores)" in bench.printed


def test_each_finished_run_has_its_line(bench):
    bench.run()
    line = next(line for line in bench.printed.splitlines() if line.startswith("visual-0: "))
    assert re.match(r"visual-0: accuracy [\d.]+% to [\d.]+% \(p .+\), perception .+, probe ", line)
    assert line.endswith("8 min 20 s; left: 2 to train, about 16 min 40 s (8 min 20 s a run, measured on 1)")


def test_a_stop_is_passed_on_once_and_the_run_goes_on_later(bench):
    bench.misbehave("signal")
    assert not bench.run()
    assert bench.calls == ["visual-0", "stopped"]
    assert "stopped in visual-0; the same command goes on from there." in bench.printed
    assert [run.state() for run in bench.runs] == ["begun", "new", "new"]
    bench.behave()
    assert bench.run()
    assert bench.calls[2:] == ["visual-0", "accuracy_only-0", "visual-1"]


def test_a_stop_at_the_end_of_a_run_begins_no_other(bench):
    bench.misbehave("signal_late")
    assert not bench.run()
    assert bench.calls == ["visual-0", "stopped"]
    assert "stopped after visual-0; the same command goes on from there." in bench.printed
    assert [run.state() for run in bench.runs] == ["recorded", "new", "new"]


def test_a_failed_training_ends_the_ablation_with_its_status(bench):
    bench.misbehave("crash")
    with pytest.raises(UserError, match="training of visual-0 ended with status 3 and without a result"):
        bench.run()
    assert bench.calls == ["visual-0"]


def test_another_config_is_refused_before_anything_runs(bench):
    recorded(bench.runs[2])
    content = bench.runs[2].record.read_text()
    bench.runs[2].record.write_text(content.replace('"steps": 20', '"steps": 21'))
    with pytest.raises(UserError, match=r"visual-1\.json is of another run: steps is 21 there and 20 here"):
        bench.run()
    assert bench.calls == []


def test_finished_runs_are_recorded_again_and_none_is_trained(bench):
    recorded(bench.runs[0])
    bench.runs[0].record.write_text("{")  # of another version: it is not read
    write_workdir(bench.runs[1])
    (bench.runs[1].workdir / "result.json").unlink()
    record_again(bench.runs, bench.console)
    assert bench.calls == []
    assert [run.record.is_file() for run in bench.runs] == [True, False, False]
    assert bench.runs[0].state() == "recorded"
    assert "1 of 3 runs graded and recorded again; not finished: accuracy_only-0, visual-1" in bench.printed


def test_a_folder_in_which_another_process_trains_is_left_alone(bench):
    (bench.folder / "runs").mkdir(exist_ok=True)
    with (bench.folder / "runs" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # so that only an exclusive lock is refused
        with pytest.raises(UserError, match="another process is training in"):
            bench.run()
    assert bench.calls == []
    assert bench.run()
