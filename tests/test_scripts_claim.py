"""`scripts/claim.py` as it is called: tables without runs, what it hands on, and wrong words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.claim_run import plan, recorded, write_config

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "claim.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("claim_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_from_records_alone(script, tmp_path, capsys):
    for run in plan(tmp_path, ["visual", "accuracy_only"], [0, 1]):
        recorded(run)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert script.main(["--out", str(tmp_path / "out"), "--config", "absent.py", "--table_only"]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} - made == {
        "table.md", "effect.svg", "runs.svg", "curves.svg",
    }  # fmt: skip
    assert "table.md" in capsys.readouterr().out


def test_all_runs_that_are_recorded_leave_only_the_tables_to_make(script, tmp_path, capsys):
    for run in plan(tmp_path, ["visual", "flipped_20"], [3]):
        recorded(run)
    arguments = [
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
        "--config",
        str(tmp_path / "small.py"),
    ]
    assert script.main([*arguments, "--variants", "visual,flipped_20", "--seeds", "3"]) == 0
    assert "The ablation: 2 runs, no training." in capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").is_file()


def test_records_are_made_again_from_the_working_directories(script, tmp_path, capsys):
    (run,) = plan(tmp_path, ["visual"], [3])
    recorded(run)
    whole = run.record.read_text()
    run.record.unlink()
    arguments = ["--out", tmp_path / "out", "--runs", tmp_path / "runs", "--config", tmp_path / "small.py"]
    assert script.main([*map(str, arguments), "--variants", "visual", "--seeds", "3", "--grade_again"]) == 0
    assert "1 of 1 runs graded and recorded again; not finished: none" in capsys.readouterr().out
    assert run.record.read_text() == whole
    assert (tmp_path / "out" / "table.md").is_file()


def test_the_script_that_trains_is_named_as_one_types_it(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "run_all", lambda runs, train, console: called.update(train=train) is not None)
    monkeypatch.chdir(SCRIPT.parent.parent)
    called = {}
    arguments = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--seeds", "0"]
    assert script.main([*arguments, "--config", str(write_config(tmp_path))]) == 1  # stopped: no tables
    assert called["train"] == Path("scripts/train.py")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "visual,gamma_0.5"], "no variant 'gamma_0.5'; there are visual, accuracy_only"),
        (["--seeds", "one"], "argument --seeds: 'one' is no list of whole numbers such as 0,1"),
        (["--table_only", "--grade_again"], "not allowed with argument"),
    ],
)
def test_wrong_words_on_the_command_line(arguments, message, script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path), *arguments])
    assert message in capsys.readouterr().err


def test_what_a_user_can_mend_is_one_line(script, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* holds no record of a run"):
        script.main(["--out", str(tmp_path), "--table_only"])
    with pytest.raises(SystemExit, match=r"error: .*absent\.py"):
        script.main(["--out", str(tmp_path), "--config", "absent.py"])
