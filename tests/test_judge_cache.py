"""The same pair is judged once, in a bounded memory, and a failure is asked about again."""

from __future__ import annotations

import math
import random

import pytest

from perception_r1_jax.judge.cache import CachedJudge
from perception_r1_jax.judge.call import AnyJudge, JudgeCall
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest
from perception_r1_jax.judge.verdicts import Judgement


class CountingJudge(AnyJudge):
    """Says 1 where the response has an "a"; fails on responses of `failing`. Keeps what it was asked in each call."""

    prompt, parameters, compilations = JudgePrompt("", "{annotations}{response}"), 7, 3

    def __init__(self, failing=()):
        self.failing, self.calls = set(failing), []

    def begin(self, judging=None, check=None):
        self.calls.append([])
        return CountingCall(self)

    def judge_one(self, request):
        count = request.expected
        if count == 0:
            return Judgement(None, 0, 0, "none")
        if request.response in self.failing:
            return Judgement(None, count, 0, "http_500")
        return Judgement((float("a" in request.response),) * count, count, count, "ok")

    def take_metrics(self):
        return {"judge/retry_rate": 0.5}


class CountingCall(JudgeCall):
    """Knows at its end alone what was asked."""

    def __init__(self, judge):
        self.judge, self.requests, self.left = judge, [], False

    def __exit__(self, *_):
        self.left = True

    def add(self, requests):
        self.judge.calls[-1] += [request.response for request in requests]
        self.requests += requests

    def finish(self):
        return [self.judge.judge_one(request) for request in self.requests]


def requests(responses: str, annotations: tuple[str, ...] = ("fact",)) -> list[JudgeRequest]:
    return [JudgeRequest(annotations, response) for response in responses]


def test_a_pair_is_asked_about_once_within_a_call_and_from_call_to_call():
    inner = CountingJudge()
    judge = CachedJudge(inner, 10)
    assert [judgement.verdicts for judgement in judge.judge(requests("abab"))] == [(1,), (0,), (1,), (0,)]
    assert judge.take_metrics() == {"judge/cache_hit_rate": 0.5, "judge/retry_rate": 0.5}
    assert [judgement.verdicts for judgement in judge.judge(requests("cab"))] == [(0,), (1,), (0,)]
    assert judge.take_metrics()["judge/cache_hit_rate"] == pytest.approx(2 / 3)
    assert inner.calls == [["a", "b"], ["c"]]


def test_requests_may_come_in_parts():
    inner = CountingJudge()
    judge = CachedJudge(inner, 10)
    judge.judge(requests("a"))
    with judge.begin() as call:
        for responses in ("bac", "", "bda"):
            call.add(requests(responses))
        assert inner.calls[-1] == ["b", "c", "d"], "as they come, each once"
        assert judge.kept == 1
        assert [judgement.verdicts for judgement in call.finish()] == [(0,), (1,), (0,), (0,), (0,), (1,)]
        assert not call._call.left
    assert call._call.left
    assert judge.kept == 4
    rate = judge.take_metrics()["judge/cache_hit_rate"]
    assert rate == pytest.approx(1 - 4 / 7), "of both calls: a step may have several"
    assert math.isnan(judge.take_metrics()["judge/cache_hit_rate"])


def test_pairs_differ_in_either_part():
    inner = CountingJudge()
    judge = CachedJudge(inner, 10)
    pairs = [(("x",), "y"), (("x", ""), "y"), (("x",), ""), (("xy",), ""), (("x",), "\ud800"), (("1:x",), "y")]
    judge.judge([JudgeRequest(*pair) for pair in pairs])
    assert len(inner.calls[0]) == len(pairs)


def test_a_failure_is_told_to_all_it_concerns_and_not_kept():
    inner = CountingJudge("a")
    judge = CachedJudge(inner, 10)
    assert [judgement.status for judgement in judge.judge(requests("aba"))] == ["http_500", "ok", "http_500"]
    inner.failing.clear()
    assert [judgement.status for judgement in judge.judge(requests("aba"))] == ["ok"] * 3
    assert inner.calls == [["a", "b"], ["a"]]


def test_what_is_not_asked_is_neither_kept_nor_counted():
    judge = CachedJudge(CountingJudge(), 10)
    assert math.isnan(judge.take_metrics()["judge/cache_hit_rate"])
    assert judge.judge(requests("aa", ()))[1].status == "none"
    assert judge.kept == 0
    assert math.isnan(judge.take_metrics()["judge/cache_hit_rate"])
    assert judge.judge([]) == []


def test_no_more_is_kept_than_allowed_and_what_is_used_stays():
    inner = CountingJudge()
    judge = CachedJudge(inner, 2)
    for responses in ("ab", "a", "c", "a", "b"):
        judge.judge(requests(responses))
        assert judge.kept <= 2
    assert inner.calls == [["a", "b"], [], ["c"], [], ["b"]]
    judge = CachedJudge(inner := CountingJudge(), 0)
    judge.judge(requests("aa"))
    judge.judge(requests("a"))
    assert inner.calls == [["a"], ["a"]]


def test_judgements_are_those_of_the_judge_itself():
    draw = random.Random(0)
    judge, plain = CachedJudge(CountingJudge("df"), 5), CountingJudge("df")
    for _ in range(200):
        asked = requests("".join(draw.choices("abcdefgh", k=6)))
        assert judge.judge(asked) == plain.judge(asked)


def test_it_tells_what_the_judge_is():
    judge = CachedJudge(CountingJudge(), 1)
    assert (judge.prompt, judge.parameters, judge.compilations) == (CountingJudge.prompt, 7, 3)
