"""The lines of `samples.jsonl`."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from perception_r1_jax.records import GroupAdvantages, Problem, Rollout, Scores
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.samples import append_samples

PROBLEMS = [Problem("train/1", "AB?", (), "5"), Problem("train/2", "BC?", (), "6", ("AB is 3",))]
ROLLOUT = Rollout(
    tokens=np.zeros((2, 2, 4), np.int32),
    mask=np.arange(4) < np.array([[[4], [2]], [[1], [3]]]),
    logps=np.zeros((2, 2, 4), np.float32),
    finish_reasons=[["length", "stop"], ["stop", "stop"]],
    texts=[["a\nb", "∠ 98°"], ["c", "d"]],
)
NAN = np.nan
SCORES = Scores(
    total=np.array([[1.0, 0.0], [0.3, 0.0]], np.float32),
    terms={
        "format": np.array([[1, 0], [0, 0]], np.float32),
        "accuracy": np.array([[1, NAN], [0, 0]], np.float32),
        "repetition": np.array([[0, 0], [-0.25, 0]], np.float32),
        "visual": np.array([[0, 0], [1, NAN]], np.float32),
    },
    valid=np.array([[True, False], [True, True]]),
    judge_status=[["none", "none"], ["ok", "missing"]],
    verdicts=[[None, None], [(1.0,), None]],
    probabilities=[[None, None], [(0.87654321,), None]],
    counts={},
)
GROUPS = Groups([types.SimpleNamespace(problem=problem) for problem in PROBLEMS], ROLLOUT, SCORES)
ADVANTAGES = GroupAdvantages(np.array([[0.7, 0.0], [1 / 3, -1]], np.float32), np.array([False, False]))


@pytest.fixture
def lines(tmp_path) -> list[dict]:
    """Two steps in one file."""
    path = tmp_path / "samples.jsonl"
    append_samples(path, 3, GROUPS, ADVANTAGES)
    append_samples(path, 4, GROUPS, ADVANTAGES)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_for_each_response_in_order(lines):
    places = [(line["step"], line["problem_id"], line["sample"]) for line in lines]
    assert places == [(step, f"train/{row}", sample) for step in (3, 4) for row in (1, 2) for sample in (0, 1)]


def test_fields(lines):
    assert lines[2] == {
        "step": 3,
        "problem_id": "train/2",
        "sample": 0,
        "response": "c",
        "tokens": 1,
        "finish_reason": "stop",
        "format": 0.0,
        "accuracy": 0.0,
        "repetition": -0.25,
        "visual": 1.0,
        "verdicts": [1.0],
        "probabilities": [0.876543],
        "judge_status": "ok",
        "total": 0.3,
        "advantage": 0.333333,
    }


def test_what_has_no_value_is_null_and_not_zero(lines):
    _, left_out, _, unjudged = lines[:4]
    assert (left_out["accuracy"], left_out["total"], left_out["advantage"]) == (None, None, 0.0)
    assert (left_out["response"], left_out["tokens"], left_out["finish_reason"]) == ("∠ 98°", 2, "stop")
    assert (unjudged["visual"], unjudged["verdicts"], unjudged["judge_status"]) == (None, None, "missing")
    assert unjudged["total"] == 0.0
