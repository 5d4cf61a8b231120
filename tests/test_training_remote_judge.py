"""A run whose judge is behind HTTP and fails on three requests in ten: it goes on, and every count is exact."""

from __future__ import annotations

import json
import math
import re
import threading
import zlib
from collections import Counter

import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.failure_window import JudgeFails
from perception_r1_jax.judge.prompts import load_prompt
from perception_r1_jax.judge.sanitise import sanitise
from perception_r1_jax.judge.template import answer_text
from perception_r1_jax.training import setup
from perception_r1_jax.training.metrics import read_lines
from tests.judge_server import Call, ScriptedServer, closed_port
from tests.training_run import one_device_mesh, small_config, train

FAULTS = {
    "http_500": lambda call: call.send(500),
    "timeout": lambda call: call.hang(60),
    "disconnected": lambda call: call.close_early(),
    "unreadable": lambda call: call.say("<info1>1</info1>\n<info"),
    "garbled": lambda call: call.send(200, b"\xff{"),
    "too_large": lambda call: call.send(200, b"1" * 10_000_000),
}


@pytest.fixture(autouse=True)
def small_run(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def digits(call: Call, count: int) -> str:
    """Verdicts that differ from response to response, and can be said again."""
    return answer_text([zlib.crc32(f"{key(call.user)}/{k}".encode()) & 1 for k in range(count)])


def key(user: str) -> str:
    """The response within a user turn."""
    return re.search(r"\nStudent response:\n(.*)\nJudgement:$", user, re.DOTALL)[1]


def status_of(response: str) -> str:
    """What becomes of a response: three in ten fail, each in one of the ways."""
    number = zlib.crc32(response.encode())
    return "ok" if number % 10 >= 3 else list(FAULTS)[number // 10 % len(FAULTS)]


def answer(call: Call) -> None:
    """Answers, or fails, as the response wants it."""
    status, count = status_of(key(call.user)), call.user.count("</info")
    if status == "ok":
        call.say(digits(call, count))
    else:
        FAULTS[status](call)


def config_for(server: ScriptedServer, **fields):
    return small_config(**{
        "judge.path": server.address,
        "judge.prompt": "",
        "judge.retries": 0,
        "judge.timeout_seconds": 4.0,
        "judge.on_failure": "drop_sample",
        "rollout.samples_per_prompt": 8,
        "grpo.micro_batch_samples": 8,
        **fields,
    })  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The working directory of a run of three steps of 16 responses, and its server."""
    workdir = tmp_path_factory.mktemp("remote")
    with pytest.MonkeyPatch.context() as patch, ScriptedServer(answer) as server:
        patch.setattr(setup, "make_mesh", one_device_mesh)
        patch.setenv("NO_PROXY", "127.0.0.1")
        train(config_for(server, **{"judge.failure_window": 16, "judge.max_failure_rate": 0.9}), workdir)
    return workdir, server


def test_the_run_goes_on_and_every_failure_is_counted_by_its_reason(finished):
    workdir, server = finished
    metrics, samples = read_lines(workdir / "metrics.jsonl"), read_lines(workdir / "samples.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert len(samples) == 48
    headings = load_prompt().headings
    for line in samples:
        assert line["judge_status"] == status_of(sanitise(line["response"], headings))
        assert (line["verdicts"] is None) == (line["visual"] is None) == (line["judge_status"] != "ok")
    for step, line in enumerate(metrics, 1):
        statuses = Counter(sample["judge_status"] for sample in samples if sample["step"] == step)
        for status in ("ok", *FAULTS):
            assert line.get(f"judge/{status}", 0) == statuses[status]
        assert line["judge/failure_rate"] == (16 - statuses["ok"]) / 16
        assert line["reward/dropped"] == 16 - statuses["ok"]
        assert line["judge/cache_hit_rate"] == 0
        assert line["judge/retry_rate"] == 0
        assert all(math.isfinite(line[name]) for name in ("train/loss", "train/grad_norm"))
    failed = sum(line["judge_status"] != "ok" for line in samples)
    assert 0.15 < failed / 48 < 0.45
    assert len({line["judge_status"] for line in samples}) >= 4
    assert len(server.calls) == 48


def test_advantages_are_those_of_the_valid_samples(finished):
    workdir, _ = finished
    samples = read_lines(workdir / "samples.jsonl")
    seen = 0
    for start in range(0, 48, 8):
        group = samples[start : start + 8]
        assert len({line["problem_id"] for line in group}) == 1
        valid = [line for line in group if line["judge_status"] == "ok"]
        rewards = [
            0.1 * line["format"] + 0.9 * line["accuracy"] + 0.7 * line["visual"] + line["repetition"] for line in valid
        ]
        np.testing.assert_allclose([line["total"] for line in valid], rewards, atol=2e-6)
        centred = np.array(rewards) - np.mean(rewards)
        expected = centred / (np.std(rewards, ddof=1) + 1e-6)
        np.testing.assert_allclose([line["advantage"] for line in valid], expected, atol=2e-5)
        seen += np.std(rewards) > 0
        for line in group:
            if line["judge_status"] != "ok":
                assert (line["total"], line["advantage"]) == (None, 0.0)
    assert seen >= 4


def test_the_record_has_the_model_that_the_endpoint_named(finished):
    record = json.loads((finished[0] / "run.json").read_text())
    assert record["config"]["judge"]["model"] == "scripted"
    assert record["hashes"]["judge"] == ""


def test_a_judge_that_fails_too_often_ends_the_run_and_says_why(tmp_path):
    with (
        ScriptedServer(lambda call: call.send(500) if status_of(key(call.user)) == "ok" else answer(call)) as server,
        pytest.raises(JudgeFails, match=r"16 of the last 16 judgements have failed \(http_500 \d+.*max_failure_rate"),
    ):
        train(config_for(server, **{"judge.failure_window": 16}), tmp_path)
    assert read_lines(tmp_path / "metrics.jsonl") == []
    assert not any(thread.name.startswith(("judge", "cheap")) for thread in threading.enumerate())


def test_a_dead_address_stops_the_run_before_it_begins(tmp_path):
    config = small_config(**{"judge.path": f"http://127.0.0.1:{closed_port()}", "judge.retries": 0})
    with pytest.raises(UserError, match=r"no list of models there \(unreachable\)"):
        train(config, tmp_path)
