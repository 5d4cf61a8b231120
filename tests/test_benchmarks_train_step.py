"""The benchmark of the update: both sides make the same one, and what is written is what is documented."""

from __future__ import annotations

import functools
import json
import os
from concurrent.futures.process import BrokenProcessPool

import pytest

from benchmarks import measure, train_step
from benchmarks.side import Side

CASES = {
    "group": {"group", "peak_memory", "tuned", "memory_tuned"},
    "single": {"single", "alone_memory", "alone_tuned", "alone_memory_tuned"},
    "large": {"large_xla"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", train_step.WORKLOADS)
def test_quick_runs_write_the_documented_list(tmp_path, name):
    """The norms of the sides' gradients agree, or it would not come to timing."""
    pytest.importorskip("torch")
    out = tmp_path / "out.json"
    options = ["--quick", "--only", name, "--json", str(out), "--checkpoints", str(tmp_path)]
    measure.run(train_step.WORKLOADS, "", options)
    cases = json.loads(out.read_text())
    assert {case["case"] for case in cases} == CASES[name]
    assert all(case["ours"] > 0 for case in cases)
    assert all((case["peer"] is None) if name == "large" else case["peer"] > 0 and case["ratio"] > 0 for case in cases)


def test_a_large_model_is_not_timed_on_a_cpu(tmp_path, capsys):
    assert train_step.large(tmp_path, quick=False) == []
    assert "give --quick for a tiny shape" in capsys.readouterr().out


def test_sides_that_make_another_update_are_not_timed():
    found = {"ours": lambda: 1.0, "peer": lambda: 1.002}
    with pytest.raises(RuntimeError, match=r"the sides do not make the same update: .*'peer': 1\.002"):
        train_step.time_sides("group", found, train_step.Work(1, 1, 1, 1), 1)


def test_without_a_peer_only_ours_is_timed():
    case = train_step.time_sides("group", {"ours": lambda: 1.0}, train_step.Work(2, 4, 1, 1), 1)
    assert (case.case, case.peer, case.ratio) == ("group", None, None)


def test_a_side_whose_process_ends_is_an_error(tmp_path):
    (tmp_path / "file").touch()  # no folder for checkpoints
    with (
        pytest.raises(BrokenProcessPool),
        Side(train_step.make_side, "ours", tmp_path / "file", train_step.Work(1, 1, 1, 90)) as side,
    ):
        side()


def tell_setting():
    return functools.partial(os.environ.get, "MALLOC_ARENA_MAX")


def test_malloc_is_told_in_the_side_s_process_alone(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    with Side(tell_setting, keep_freed_memory=True) as keeping, Side(tell_setting) as ordinary:
        assert (keeping(), ordinary()) == ("1", None)
    assert "MALLOC_ARENA_MAX" not in os.environ
