"""A judge behind HTTP, a real server that fails in every way: each request ends in a judgement with its reason."""

from __future__ import annotations

import contextlib
import email.utils
import json
import math
import threading
import time

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge import endpoint
from perception_r1_jax.judge.endpoint import Endpoint, base_url, retry_after_seconds
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.judge.wire import error_body
from tests.judge_server import Call, ScriptedServer, closed_port

FACTS = ("AB = 1", "AB = 2", "AB = 3")


def request(name: str, *shown: int) -> JudgeRequest:
    """A request with this name in its response, whose facts of these numbers are shown."""
    return JudgeRequest(FACTS, f"{name}: " + " ".join(FACTS[number] for number in shown))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)


def ask(script, *requests: JudgeRequest, **settings) -> tuple[list[Judgement], ScriptedServer]:
    with ScriptedServer(script) as server:
        judge = connect_judge(server.address, **{"timeout_seconds": 5.0, "retries": 2} | settings)
        return judge.judge(requests), server


def test_judgements_come_in_the_order_of_the_requests():
    def slow_first(call: Call) -> None:
        time.sleep(0.1 if "first" in call.user else 0)
        call.judge()

    judgements, server = ask(slow_first, request("first", 0), JudgeRequest((), "x"), request("last", 1, 2))
    assert judgements == [
        Judgement((1.0, 0.0, 0.0), 3, 3, "ok"),
        Judgement(None, 0, 0, "none"),
        Judgement((0.0, 1.0, 1.0), 3, 3, "ok"),
    ]
    assert len(server.calls) == 2
    body = server.calls[0].body
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("scripted", 0, 512)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]


def test_requests_go_out_as_they_come_and_their_caller_does_not_wait():
    both = threading.Event()

    def script(call: Call) -> None:
        assert both.wait(30)
        call.judge()

    under_way = []

    @contextlib.contextmanager
    def judging():
        under_way.append(threading.current_thread().name)
        yield
        under_way.append("over")

    with ScriptedServer(script) as server, connect_judge(server.address, retries=0).begin(judging) as call:
        for name in "ab":
            call.add([request(name, 1)])
        while len(server.calls) < 2:
            time.sleep(0.01)
        assert under_way == ["judge", "judge"]
        both.set()
        call.add([request("c", 2)])
        assert [judgement.verdicts for judgement in call.finish()] == [(0, 1, 0), (0, 1, 0), (0, 0, 1)]
        assert under_way.count("over") == 3


def test_who_waits_may_give_up_at_once():
    def check():
        if len(server.calls) == 3:
            raise TimeoutError("enough")

    with ScriptedServer(lambda call: call.hang(60)) as server:
        judge, started = connect_judge(server.address), time.monotonic()
        with judge.begin(check=check) as call:
            call.add([request(name) for name in "abc"])
            with pytest.raises(TimeoutError, match="enough"):
                call.finish()
    assert time.monotonic() - started < 20
    assert "judge" not in [thread.name for thread in threading.enumerate()]


VLLM_TOO_LONG = {"error": {"message": "This model's maximum context length is 512 tokens.", "code": 400}}
BIG = b'{"choices": [{"message": {"content": "' + b"1" * 10_000_000 + b'"}}]}'

FAULTS = [
    # what the server does, status, verdicts parsed, attempts of three
    (lambda call: call.send(500, b"oh"), "http_500", 0, 3),
    (lambda call: call.send(503, b'{"error": {"code": null}}'), "http_503", 0, 3),
    (lambda call: call.send(429, b"", Retry_After="0"), "http_429", 0, 3),
    (lambda call: call.send(401, b"who are you?"), "http_401", 0, 1),
    (lambda call: call.send(302, b"", Location="http://127.0.0.1/"), "http_302", 0, 1),
    (lambda call: call.send(400, json.dumps(error_body("", "context_length_exceeded")).encode()), "too_long", 0, 1),
    (lambda call: call.send(400, json.dumps(VLLM_TOO_LONG).encode()), "too_long", 0, 1),
    (lambda call: call.send(400, json.dumps(error_body("", "too_many_annotations")).encode()), "too_many", 0, 1),
    (lambda call: call.send(400, json.dumps(error_body("", ["a list"])).encode()), "http_400", 0, 1),
    (lambda call: call.hang(5), "timeout", 0, 3),
    (lambda call: call.hang(5, b'{"choices": []}'), "timeout", 0, 3),
    (lambda call: call.close_early(), "disconnected", 0, 3),
    (lambda call: call.close_early(reset=True), "disconnected", 0, 3),
    (lambda call: call.send(200, BIG), "too_large", 0, 1),
    (lambda call: call.send(200, BIG, length=False), "too_large", 0, 1),
    (lambda call: call.send(200, b"\xff\xfe<info1>1</info1>"), "garbled", 0, 1),
    (lambda call: call.send(200, b'{"choices": [{"message"'), "garbled", 0, 1),
    (lambda call: call.send(200, b"[" * 500_000), "garbled", 0, 1),
    (lambda call: call.send(200, b"1" * 500_000), "garbled", 0, 1),
    (lambda call: call.send(200, b""), "garbled", 0, 1),
    (lambda call: call.send(200, b"null"), "garbled", 0, 1),
    (lambda call: call.send(200, b'{"choices": []}'), "garbled", 0, 1),
    (lambda call: call.send(200, b'{"choices": [{"message": {"content": 1}}]}'), "garbled", 0, 1),
    (lambda call: call.judge(keep=2), "missing", 2, 1),
    (lambda call: call.say(None), "empty", 0, 1),
    (lambda call: call.say(""), "empty", 0, 1),
    (lambda call: call.say("I cannot judge this."), "unreadable", 0, 1),
    (lambda call: call.say("\ud800"), "unreadable", 0, 1),
    (lambda call: call.say("<info1>1</info1>" * 2), "repeated", 2, 1),
]


@pytest.mark.parametrize(("fault", "status", "parsed", "attempts"), FAULTS, ids=range(len(FAULTS)))
def test_every_fault_is_a_judgement_with_its_reason_and_holds_up_no_other(fault, status, parsed, attempts):
    def script(call: Call) -> None:
        if "bad" in call.user:
            fault(call)
        else:
            call.judge()

    judgements, server = ask(script, request("good", 0), request("bad", 0), request("fine", 2), timeout_seconds=1.5)
    assert judgements[1] == Judgement(None, 3, parsed, status)
    assert [judgements[0].verdicts, judgements[2].verdicts] == [(1, 0, 0), (0, 0, 1)]
    assert len([call for call in server.calls if "bad" in call.user]) == attempts


def test_nobody_there_is_unreachable():
    with ScriptedServer(Call.judge) as server:
        judge = connect_judge(server.address, retries=1, timeout_seconds=5)
    started = time.monotonic()
    assert [judgement.status for judgement in judge.judge([request("a"), request("b")])] == ["unreachable"] * 2
    assert time.monotonic() - started < 5
    assert judge.take_metrics() == {"judge/retry_rate": 1.0}


@pytest.mark.parametrize(
    "fault",
    [
        lambda call: call.send(500),
        lambda call: call.send(429),
        lambda call: call.close_early(),
        lambda call: call.hang(5),
    ],
    ids=["500", "429", "closed", "hangs"],
)
def test_what_passes_is_asked_again(fault):
    def script(call: Call) -> None:
        if call.attempt == 1:
            fault(call)
        else:
            call.judge()

    (judgement,), server = ask(script, request("a", 1), timeout_seconds=1.5)
    assert judgement == Judgement((0.0, 1.0, 0.0), 3, 3, "ok")
    assert len(server.calls) == 2


def test_a_server_that_asks_for_time_is_given_it_up_to_a_limit(monkeypatch):
    def script(call: Call) -> None:
        if call.attempt == 1:
            call.send(429, Retry_After="1" if "a:" in call.user else "86400")
        else:
            call.judge()

    monkeypatch.setattr(endpoint, "LONGEST_WAIT_SECONDS", 1.5)
    for name, least in (("a", 1), ("b", 1.5)):
        started = time.monotonic()
        (judgement,), _ = ask(script, request(name))
        assert judgement.status == "ok"
        assert least <= time.monotonic() - started < 60


def test_a_date_or_nonsense_in_retry_after():
    assert retry_after_seconds(" 7 ") == 7
    assert retry_after_seconds(email.utils.formatdate(time.time() + 60, usegmt=True)) == pytest.approx(60, abs=2)
    for nothing in ("", "soon", "-5", "1.5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 99 Oct 2015 07:28:00 GMT"):
        assert retry_after_seconds(nothing) == 0


def test_waits_double_up_to_a_limit_and_depend_on_seed_and_request_alone(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 1.0)
    settings = {"timeout_seconds": 1, "retries": 1, "concurrency": 1}

    def waits(seed: int, body: bytes) -> list[float]:
        asked = Endpoint("http://localhost", seed=seed, **settings)
        return [asked._backoff_seconds(body, attempt) for attempt in range(1, 10)]

    for wait, whole in zip(waits(0, b"a"), [1, 2, 4, 8, 16, 30, 30, 30, 30]):
        assert whole / 2 <= wait <= whole
    assert waits(0, b"a") == waits(0, b"a")
    assert len({tuple(waits(seed, body)) for seed in (0, 1) for body in (b"a", b"b")}) == 4


def test_no_more_requests_are_under_way_than_allowed():
    def script(call: Call) -> None:
        time.sleep(0.05)
        call.judge()

    judgements, server = ask(script, *(request(str(number), number % 3) for number in range(12)), concurrency=3)
    assert [judgement.verdicts.index(1) for judgement in judgements] == [0, 1, 2] * 4
    assert server.most == 3


def test_retries_are_counted_over_all_calls_of_a_step():
    with ScriptedServer(lambda call: call.judge() if len(server.calls) > 1 else call.send(500)) as server:
        judge = connect_judge(server.address, retries=1)
        judge.judge([request("a")])
        judge.judge([request("b")])
        assert judge.take_metrics() == {"judge/retry_rate": 0.5}
        assert math.isnan(judge.take_metrics()["judge/retry_rate"])


def test_a_lost_endpoint_is_given_up_for_the_rest_of_a_call_and_tried_again_in_the_next():
    lost = True

    def script(call: Call) -> None:
        if lost:
            call.close_early(reset=True)
        else:
            call.judge()

    requests = [request(str(number)) for number in range(40)]
    with ScriptedServer(script) as server:
        judge = connect_judge(server.address, retries=0, concurrency=4)
        statuses = [judgement.status for judgement in judge.judge(requests)]
        assert statuses.count("not_sent") == 40 - len(server.calls)
        assert 16 <= len(server.calls) < 16 + 4
        assert judge.take_metrics() == {"judge/retry_rate": 0.0}
        lost = False
        assert {judgement.status for judgement in judge.judge(requests)} == {"ok"}


def test_a_server_that_fails_now_and_then_is_not_given_up():
    def script(call: Call) -> None:
        number = int(call.user.rpartition("</info")[2].split("\n")[2].partition(":")[0])
        if number % 10 < 9:
            call.close_early()
        else:
            call.judge()

    judgements, _ = ask(script, *(request(str(number)) for number in range(80)), retries=0, concurrency=1)
    assert [judgement.status for judgement in judgements] == (["disconnected"] * 9 + ["ok"]) * 8


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(monkeypatch):
    assert ask(Call.judge, request("a"))[1].authorizations == [None]
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    with ScriptedServer(Call.judge) as elsewhere:
        location = f"{elsewhere.address}/chat/completions"
        (judgement,), server = ask(lambda call: call.send(307, Location=location), request("a"))
    assert judgement.status == "http_307"
    assert server.authorizations == ["Bearer secret"]
    assert elsewhere.calls == []


def test_the_authors_semantics():
    answer = "So: <info1>1</info1> <info2>0.5</info2>"
    judgements, server = ask(lambda call: call.say(answer), JudgeRequest(FACTS, "<|im_end|>"), fidelity="paper")
    assert judgements == [Judgement((1.0, 0.5), 3, 2, "ok")]
    assert "<|im_end|>" in server.calls[0].user
    (judgement,), server = ask(lambda call: call.send(500), request("a"), fidelity="paper")
    assert judgement == Judgement(None, 3, 0, "http_500")


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1"),
        ("https://judge.example/openai/v1", "https://judge.example/openai/v1"),
        ("http://[::1]:80", "http://[::1]:80/v1"),
    ],
)
def test_addresses(address, url):
    assert base_url(address) == url


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http:///v1",
        "http://host:port",
        "http://host:99999",
        "http://a/v1?key=1",
        "http://[::1",
        "http://a\0b",
    ],
)
def test_an_address_that_cannot_be_is_named(address):
    with pytest.raises(UserError, match="give the address of a server") as error:
        base_url(address)
    assert repr(address) in str(error.value)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(UserError, match="JUDGE_API_KEY") as error:
        base_url("http://me:secret@host/v1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("models", "wanted", "found"),
    [
        (("a",), "", "a"),
        (("a", "b"), "b", "b"),
        (None, "b", "b"),  # no list of models there
        ((), "", r"has the models \[\]; set config\.judge\.model"),
        (("a", "b"), "", r"has the models \['a', 'b'\]; set config\.judge\.model"),
        (("a",), "b", r"has the models \['a'\]; .* it is 'b'"),
        (None, "", r"no list of models there \(http_404\)"),
    ],
)
def test_the_model_is_found_before_anything_is_judged(models, wanted, found):
    with ScriptedServer(Call.judge, models) as server:
        if len(found) == 1:
            assert connect_judge(server.address, model=wanted).model == found
        else:
            with pytest.raises(UserError, match=found):
                connect_judge(server.address, model=wanted)


def test_no_server_at_the_start_is_told_at_once():
    with pytest.raises(UserError, match=r"no list of models there \(unreachable\)\. Start the server"):
        connect_judge(f"http://127.0.0.1:{closed_port()}", retries=1)
