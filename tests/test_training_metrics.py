"""What the metrics files hold after a run, a kill and a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from perception_r1_jax.training.metrics import MetricsWriter, append_lines, fence, format_line


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_per_step_readable_at_once(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"loss": np.float32(0.5), "reward": 1})
        assert read(tmp_path) == [{"step": 0, "loss": 0.5, "reward": 1.0}]
        writer.write(1, {"loss": float("nan"), "reward": 2})
    assert read(tmp_path)[1] == {"step": 1, "loss": None, "reward": 2.0}
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        for step in range(5):
            writer.write(step, {"run": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "ru')  # killed while writing
    with MetricsWriter(tmp_path, first_step=3) as writer:
        writer.write(3, {"run": 2})
    assert [(line["step"], line["run"]) for line in read(tmp_path)] == [(0, 1), (1, 1), (2, 1), (3, 2)]


def test_a_run_from_the_start_leaves_nothing_of_an_earlier_one(tmp_path):
    for run in (1, 2):
        with MetricsWriter(tmp_path) as writer:
            writer.write(0, {"run": run})
    assert read(tmp_path) == [{"step": 0, "run": 2.0}]


def test_a_fence_keeps_lines_with_unusual_line_ends(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"step": 1, "response": "a\u2028b"}\n{"step": 2}\n', encoding="utf-8")
    fence(path, 2)
    assert path.read_text(encoding="utf-8") == '{"step": 1, "response": "a\u2028b"}\n'


def test_a_damaged_line_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 .*'not json"):
        fence(path, 1)
    assert path.read_text().count("\n") == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file to which nothing can be written")
def test_a_full_disk_is_told_with_the_file(tmp_path):
    full = tmp_path / "samples.jsonl"
    full.symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{full}'"):
        append_lines(full, [{"step": 1}])


def test_console_line():
    metrics = {"loss": 0.0123456, "tokens": 53210.0, "grad_norm": float("inf")}
    line = format_line(3, 20, metrics, ["loss", "reward", "tokens", "grad_norm"])
    assert line == "step  3/20 | loss 0.01235 | tokens 53210 | grad_norm inf"
