"""`scripts/serve_judge.py` as a command: serves, is asked by score.py, stops at a signal; and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from perception_r1_jax.assets import MINI_JUDGE
from scripts import score, serve_judge

SCRIPT = Path(serve_judge.__file__)


@pytest.fixture(scope="module")
def served():
    """The embedded judge, with the default prompt, in a process of its own; its address and the process."""
    command = [sys.executable, str(SCRIPT), "--model", str(MINI_JUDGE), "--name", "mini", "--port", "0"]
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    options = ["--dtype", "float32", "--batch_size", "2", "--max_new_tokens", "64", "--max_prompt_tokens", "3072"]
    process = subprocess.Popen(
        command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    line = process.stdout.readline()
    match = re.fullmatch(r"serving mini at (http://127\.0\.0\.1:\d+/v1)\n", line)
    assert match, line + process.stderr.read()
    yield match[1], process
    process.kill()
    process.communicate()


def test_it_is_asked_by_score_py_and_stops_at_a_signal(served, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    address, process = served
    with urllib.request.urlopen(address.removesuffix("/v1") + "/health", timeout=60) as response:
        assert json.load(response) == {"status": "ok", "model": "mini", "waiting": 0}
    row = {"response": "AB is 3.", "answer": "5", "annotations": ["AB is 3.", "BC is 4."]}
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({**row, "id": number}) + "\n" for number in range(3)))
    assert score.main(["--input", str(source), "--output", str(target), "--judge", address]) == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [row["judge_status"] for row in rows] == ["ok"] * 3
    assert {row["visual"] for row in rows} <= {0.0, 0.5, 1.0}
    assert len({row["visual"] for row in rows}) == 1
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "SIGTERM: answering what has been asked" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "absent"], "--model absent: no such folder"),
        (["--model", ".", "--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["--model", ".", "--batch_size", "0"], "--batch_size 0: must be at least 1"),
        (["--model", ".", "--max_thought_tokens", "-1"], "--max_thought_tokens -1: must be at least 0"),
        (["--model", ".", "--weights_memory", "0"], "--weights_memory 0.0 --cache_memory 0.2: must be above 0"),
        (["--model", ".", "--weights_memory", "0.9"], "and at most 1 together"),
        (["--model", ".", "--fidelity", "paper"], "--fidelity paper goes with --mode free"),
        ([], "--model"),
    ],
)
def test_a_wrong_command_line_is_explained(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        serve_judge.main(options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model_is_an_error_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: .+") as stop:
        serve_judge.main(["--model", str(tmp_path)])
    assert "\n" not in str(stop.value.code)


def test_an_address_that_is_taken_is_an_error_in_one_line(monkeypatch):
    from perception_r1_jax.judge import on_mesh

    class NoJudge:
        prompt = answer = read_messages = None

    asked = {}
    monkeypatch.setattr(on_mesh, "load_judge", lambda *_, **fields: asked.update(fields) or NoJudge())
    with pytest.raises(SystemExit, match=r"error: --host no\.such\.host\.invalid --port 8000: cannot listen there"):
        serve_judge.main(
            [
                "--model",
                str(MINI_JUDGE),
                "--host",
                "no.such.host.invalid",
                "--weights_int8",
                "--max_thought_tokens",
                "7",
                "--weights_memory",
                "0.6",
            ]
        )
    assert (asked["weights_int8"], asked["max_thought_tokens"], asked["mode"]) == (True, 7, "constrained")
    assert (asked["weights_memory"], asked["cache_memory"]) == (0.6, 0.2)
    assert "judge" not in [thread.name for thread in threading.enumerate()]
