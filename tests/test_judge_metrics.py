"""Failures are counted by reason, against the judgements that were asked for."""

from __future__ import annotations

import math

from perception_r1_jax.judge.metrics import all_failed, judge_metrics


def test_every_status_is_counted():
    assert judge_metrics(["ok", "none", "missing", "ok", "missing", "too_long"]) == {
        "judge/ok": 2,
        "judge/none": 1,  # never asked for, so outside of the rate
        "judge/missing": 2,
        "judge/too_long": 1,
        "judge/failure_rate": 3 / 5,
    }


def test_without_a_judgement_asked_for_there_is_no_rate():
    assert math.isnan(judge_metrics(["none", "none"])["judge/failure_rate"])
    assert math.isnan(judge_metrics([])["judge/failure_rate"])


def test_reasons_are_told_where_every_judgement_has_failed():
    assert all_failed(judge_metrics(["none", "timeout", "missing", "timeout"])) == "missing 1, timeout 2"
    for statuses in (["ok", "timeout"], ["none"], []):
        assert all_failed(judge_metrics(statuses)) == ""
