"""Scores of a small batch: two problems, two responses each."""

from __future__ import annotations

import json

import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.judge.wire import error_body
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards import AccuracyPool
from perception_r1_jax.rewards.failures import RewardFailed
from perception_r1_jax.rewards.score import WEIGHTS, RewardSettings, score_responses
from tests.judge_server import ScriptedServer

FORMATTED = "<think>\nx\n</think>\n<answer>\n\\boxed{5}\n</answer>"
TOWER = r"\boxed{9^{9^{9^{9}}}}"
PROBLEMS = [
    Problem("with facts", "", (), "5", ("AB is 3", "BC is 4"), {"unit": "cm"}),
    Problem("without facts", "", (), "5", (), {"unit": "m"}),
]
TEXTS = [[FORMATTED, r"\boxed{6}"], [r"\boxed{5} m", "word " * 21]]
OK = Judgement((1.0, 0.0), 2, 2, "ok")
FAILED = Judgement(None, 2, 1, "missing")
NONE = Judgement(None, 0, 0, "none")


@pytest.fixture(scope="module")
def pool():
    with AccuracyPool(workers=1, deadline_seconds=2.0) as pool:
        yield pool


def test_terms_and_total(pool):
    scores = score_responses(PROBLEMS, TEXTS, [[OK, OK], [NONE, NONE]], pool, RewardSettings())
    np.testing.assert_array_equal(scores.terms["format"], [[1, 0], [0, 0]])
    np.testing.assert_array_equal(scores.terms["accuracy"], [[1, 0], [1, 0]])
    np.testing.assert_array_equal(scores.terms["repetition"], [[0, 0], [0, -1]])
    np.testing.assert_array_equal(scores.terms["visual"], [[0.5, 0.5], [np.nan, np.nan]])
    np.testing.assert_allclose(scores.total, [[1.35, 0.35], [0.9, -1.0]], rtol=1e-6)
    assert scores.valid.all()
    assert scores.total.dtype == np.float32
    assert scores.judge_status == [["ok", "ok"], ["none", "none"]]
    assert scores.verdicts == [[(1.0, 0.0)] * 2, [None] * 2]
    assert scores.counts == {"accuracy/ok": 4, "judge/ok": 2, "judge/none": 2, "dropped": 0}


@pytest.mark.parametrize(
    ("policy", "total", "valid"),
    [
        ("drop_sample", [1.35, 0.0], [True, False]),
        ("drop_term_for_group", [1.0, 0.0], [True, True]),
        ("zero", [1.35, 0.0], [True, True]),
    ],
)
def test_a_failed_judgement(pool, caplog, policy, total, valid):
    settings = RewardSettings(on_judge_failure=policy)
    scores = score_responses(PROBLEMS, TEXTS, [[OK, FAILED], [NONE, NONE]], pool, settings)
    np.testing.assert_allclose(scores.total[0], total, rtol=1e-6)
    np.testing.assert_array_equal(scores.valid, [valid, [True, True]])
    assert np.isnan(scores.terms["visual"][0, 1])
    assert scores.counts["judge/missing"] == 1
    assert "judge reward: 1 missing, of the problems with facts" in caplog.text


def test_what_a_server_says_of_a_refused_request_is_in_the_log(pool, caplog, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    message = "maximum context length is 4096,\nhowever you asked for 5000; " + "so " * 1000
    body = json.dumps(error_body(message, "context_length_exceeded")).encode()
    with ScriptedServer(lambda call: call.send(400, body)) as server:
        (refused,) = connect_judge(server.address).judge([JudgeRequest(PROBLEMS[0].annotations, TEXTS[0][0])])
    assert refused.status == "too_long"
    score_responses(PROBLEMS, TEXTS, [[OK, refused], [NONE, NONE]], pool, RewardSettings())
    warning = "1 too_long, of the problems with facts: maximum context length is 4096, however you asked for 5000; so "
    assert warning in caplog.text
    assert max(map(len, caplog.messages)) < 300


def test_the_visual_term_may_be_how_sure_the_judge_is(pool):
    sure, unsure = (Judgement((1.0, 0.0), 2, 2, "ok", values) for values in ((1.0, 0.25), (0.75, 0.5)))
    judgements = [[sure, unsure], [NONE, FAILED]]
    config = default_config()
    config.reward.visual_mode = "probability"
    scores = score_responses(PROBLEMS, TEXTS, judgements, pool, RewardSettings.from_config(config))
    np.testing.assert_array_equal(scores.terms["visual"], [[0.625, 0.625], [np.nan, np.nan]])
    assert scores.probabilities == [[(1.0, 0.25), (0.75, 0.5)], [None, None]]
    hard = score_responses(PROBLEMS, TEXTS, judgements, pool, RewardSettings())
    np.testing.assert_array_equal(hard.terms["visual"], [[0.5, 0.5], [np.nan, np.nan]])


def test_abort(pool):
    settings = RewardSettings(on_judge_failure="abort")
    with pytest.raises(RewardFailed, match="with facts"):
        score_responses(PROBLEMS, TEXTS, [[OK, FAILED], [NONE, NONE]], pool, settings)


def test_a_time_out_drops_its_response_and_no_other(pool, caplog):
    scores = score_responses(PROBLEMS, [[FORMATTED, TOWER], TEXTS[1]], None, pool, RewardSettings())
    np.testing.assert_array_equal(scores.valid, [[True, False], [True, True]])
    np.testing.assert_allclose(scores.total, [[1.0, 0.0], [0.9, -1.0]], rtol=1e-6)
    assert np.isnan(scores.terms["accuracy"][0, 1])
    assert (scores.counts["accuracy/timed_out"], scores.counts["dropped"]) == (1, 1)
    assert "accuracy reward: 1 timed_out, of the problems with facts" in caplog.text


def test_without_a_judge_the_visual_term_adds_nothing(pool):
    scores = score_responses(PROBLEMS, TEXTS, None, pool, RewardSettings())
    np.testing.assert_allclose(scores.total, [[1.0, 0.0], [0.9, -1.0]], rtol=1e-6)
    assert np.isnan(scores.terms["visual"]).all()
    assert scores.valid.all()


def test_a_reward_of_the_users_own(pool, caplog):
    def mentions_metres(row, response):
        return 1.0 if response.endswith(row["unit"]) else 1 / ("word" not in response) - 1.0

    settings = RewardSettings(weights=WEIGHTS | {"custom": 2.0}, custom=mentions_metres)
    scores = score_responses(PROBLEMS, TEXTS, None, pool, settings)
    np.testing.assert_array_equal(scores.terms["custom"], [[0.0, 0.0], [1.0, np.nan]])
    np.testing.assert_allclose(scores.total, [[1.0, 0.0], [2.9, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(scores.valid, [[True, True], [True, False]])
    assert (scores.counts["custom/ok"], scores.counts["custom/failed"]) == (3, 1)
    assert "custom reward: 1 failed, of the problems without facts: ZeroDivisionError" in caplog.text


def test_settings_from_a_config():
    config = default_config()
    assert RewardSettings.from_config(config) == RewardSettings()
    config.reward.function, config.reward.custom_weight = "math:copysign", 0.3
    config.judge.on_failure, config.reward.visual_weight = "zero", 0.2
    settings = RewardSettings.from_config(config)
    assert settings.weights == {**WEIGHTS, "visual": 0.2, "custom": 0.3}
    assert settings.on_judge_failure == "zero"
    assert settings.custom is not None
