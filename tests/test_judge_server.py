"""The judge served over HTTP: what clients may send, and a remote judge that says what the judge itself says."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest

from perception_r1_jax.assets import MINI_JUDGE, MINI_JUDGE_PROMPT
from perception_r1_jax.data.geometry_world.conversations import judge_case
from perception_r1_jax.judge import server as server_module
from perception_r1_jax.judge import service as service_module
from perception_r1_jax.judge.cache import CachedJudge
from perception_r1_jax.judge.on_mesh import Answer, Judge, load_judge
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.judge.server import JudgeServer
from perception_r1_jax.judge.service import JudgeService
from perception_r1_jax.sharding import make_mesh

PROMPT = JudgePrompt("Judge.", "Facts:\n{annotations}\nText:\n{response}\nVerdicts:")
REQUEST = JudgeRequest(("AB = 1", "AB = 2"), "AB = 2")


class StubJudge:
    """Writes a token for each character of an answer that states its facts as shown if the response repeats them."""

    prompt = PROMPT

    def __init__(self):
        self.batches: list[int] = []
        self.held = threading.Event()
        self.held.set()

    def read_messages(self, messages):
        return self.prompt.read_messages(messages)

    def answer(self, requests):
        self.batches.append(len(requests))
        self.held.wait(10)
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        if request.response.startswith("fail "):
            return Answer((), False, request.response.removeprefix("fail "))
        if request.response == "break":
            raise RuntimeError("out of memory")
        facts = enumerate(request.annotations, 1)
        return Answer(
            tuple("\n".join(f"<info{k}>{int(f in request.response)}</info{k}>" for k, f in facts)), True, "ok"
        )

    def decode(self, tokens):
        return "".join(tokens)


class Serving:
    """A server of the stub on a free port, running."""

    def __init__(self, judge):
        self.judge = judge
        self.server = JudgeServer(JudgeService(judge, "stub"), "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        assert response.headers["Content-Type"] == "application/json"
        return response.status, json.loads(response.read())

    def chat(self, request: JudgeRequest = REQUEST, **fields) -> tuple[int, dict]:
        body = {"model": "stub", "messages": PROMPT.messages(request), **fields}
        return self.send("POST", "/v1/chat/completions", json.dumps(body).encode())

    def stop(self):
        self.server.shutdown()
        self.server.finish()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def serving():
    serving = Serving(StubJudge())
    yield serving
    serving.stop()


def test_an_answer_has_the_form_of_a_chat_completion(serving):
    status, body = serving.chat()
    assert status == 200
    assert (body["object"], body["model"]) == ("chat.completion", "stub")
    message = {"role": "assistant", "content": "<info1>0</info1>\n<info2>1</info2>"}
    assert body["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_cut_at_the_client_s_limit(serving, name):
    (choice,) = serving.chat(**{name: 8})[1]["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("<info1>0", "length")
    (choice,) = serving.chat(**{name: 33})[1]["choices"]
    assert choice["finish_reason"] == "stop"


def test_health_and_models(serving):
    assert serving.send("GET", "/health") == (200, {"status": "ok", "model": "stub", "waiting": 0})
    assert [model["id"] for model in serving.send("GET", "/v1/models?limit=3")[1]["data"]] == ["stub"]


CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("GET", "/", None, 404, "nothing at '/'; there is /health"),
        ("GET", CHAT, None, 405, "takes POST, not GET"),
        ("POST", "/health", b"", 405, "takes GET, not POST"),
        ("DELETE", CHAT, None, 501, "DELETE"),
        ("POST", CHAT, b"", 400, "no JSON in UTF-8"),
        ("POST", CHAT, b"\xff", 400, "no JSON in UTF-8"),
        ("POST", CHAT, b"[" * 100_000, 400, "no JSON in UTF-8"),
        ("POST", CHAT, b"[]", 400, "a list, no JSON object"),
        ("POST", CHAT, b"{}", 400, "not those of this judge's prompt"),
        ("POST", CHAT, b'{"model": "other"}', 404, "no model 'other' here; it is 'stub'"),
    ],
)
def test_what_cannot_be_answered_is_refused_as_json(serving, method, path, body, status, message):
    got, answer = serving.send(method, path, body)
    assert got == status
    assert message in answer["error"]["message"]
    assert answer["error"]["code"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stream": True}, "stream is True; here it can only be False"),
        ({"n": 2}, "n is 2; here it can only be 1"),
        ({"temperature": 0.7}, "temperature is 0.7; here it can only be 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": "9"}, "max_tokens is '9'"),
        ({"messages": "hello"}, "not those of this judge's prompt"),
        ({"messages": []}, "not those of this judge's prompt"),
        ({"messages": [1]}, "not those of this judge's prompt"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "not those of this judge's prompt"),
        ({"messages": [{"role": "user", "content": ["\ud800"]}]}, "not those of this judge's prompt"),
        ({"messages": PROMPT.messages(JudgeRequest((), "x"))}, "no annotation"),
        ({"messages": PROMPT.raw_messages(JudgeRequest(("a",), "<info1>1</info1>"))}, "not those of"),
        ({"messages": JudgePrompt("Judge!", PROMPT.user).messages(REQUEST)}, "same prompt file on both sides"),
    ],
)
def test_a_request_that_cannot_be_answered_is_told_why(serving, fields, message):
    status, answer = serving.chat(**fields)
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    assert message in answer["error"]["message"]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        ("too_long", 400, "context_length_exceeded"),
        ("too_many", 400, "too_many_annotations"),
        ("not_finite", 500, "logits_not_finite"),
    ],
)
def test_a_judge_s_own_failure_has_its_code_and_arrives_as_its_status(serving, failure, status, code):
    request = JudgeRequest(("a",), f"fail {failure}")
    got, answer = serving.chat(request)
    assert (got, answer["error"]["code"]) == (status, code)
    (judgement,) = remote(serving, retries=0).judge([request])
    assert judgement.status == failure


def remote(serving: Serving, **settings):
    """A remote judge with the stub's prompt."""
    judge = connect_judge(serving.address, **{"retries": 1, "timeout_seconds": 10} | settings)
    judge.prompt = PROMPT
    return judge


def test_a_judge_that_breaks_is_an_error_of_one_batch(serving, caplog):
    status, answer = serving.chat(JudgeRequest(("a",), "break"))
    assert (status, answer["error"]["code"]) == (500, "judge_failed")
    assert "out of memory" in caplog.text
    assert "out of memory" not in answer["error"]["message"]
    assert serving.chat()[0] == 200


def test_a_defect_around_the_judge_is_an_error_of_one_request(serving, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(serving.judge, "read_messages", None)
        status, answer = serving.chat()
    assert (status, answer["error"]["code"]) == (500, "internal_error")
    assert "'NoneType' object is not callable" in caplog.text
    assert serving.chat()[0] == 200


def test_a_body_has_a_limit_and_a_length(serving, monkeypatch):
    monkeypatch.setattr(server_module, "MAX_REQUEST_BYTES", 1000)
    status, answer = serving.send("POST", CHAT, b" " * 1001)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    connection = http.client.HTTPConnection("127.0.0.1", serving.server.server_port, timeout=10)
    connection.putrequest("POST", CHAT)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    assert connection.getresponse().status == 411
    for length in ("-1", "x", "9" * 5000):
        connection = http.client.HTTPConnection("127.0.0.1", serving.server.server_port, timeout=10)
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Length", length)
        connection.endheaders()
        assert connection.getresponse().status == (411 if len(length) < 3 else 413)
    assert serving.send("GET", "/health")[0] == 200


def test_clients_that_leave_or_fall_silent_harm_nobody(serving, monkeypatch):
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    for body in (b"", b"{"):
        connection = http.client.HTTPConnection("127.0.0.1", serving.server.server_port, timeout=10)
        connection.putrequest("POST", CHAT)
        connection.putheader("Content-Length", "10")
        connection.endheaders(body)
        if body:
            connection.close()
        else:
            with pytest.raises(http.client.RemoteDisconnected):
                connection.getresponse()
    assert serving.chat()[0] == 200


def test_requests_are_judged_in_batches_of_what_waits(serving):
    serving.judge.held.clear()
    requests = [JudgeRequest(("AB = 1",), f"{number}: AB = {number % 2};") for number in range(20)]
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(remote(serving, concurrency=20).judge, requests)
        while len(serving.server.service._line) + sum(serving.judge.batches) < 20:
            assert not future.done()
        serving.judge.held.set()
        judgements = future.result()
    assert [judgement.verdicts for judgement in judgements] == [(float(number % 2),) for number in range(20)]
    assert sum(serving.judge.batches) == 20
    assert len(serving.judge.batches) == 2


def test_an_answer_whose_client_has_left_is_there_when_it_asks_again(serving):
    serving.judge.held.clear()
    assert remote(serving, retries=0, timeout_seconds=1).judge([REQUEST])[0].status == "timeout"
    assert serving.judge.batches == [1]
    serving.judge.held.set()
    assert remote(serving, retries=0).judge([REQUEST])[0].verdicts == (0, 1)
    assert serving.judge.batches == [1]


def test_no_more_answers_are_kept_than_allowed_and_no_failures(monkeypatch):
    monkeypatch.setattr(service_module, "ANSWERS_KEPT", 1)
    serving = Serving(StubJudge())
    other = JudgeRequest(("AB = 1",), "AB = 1")
    failing = JudgeRequest(("AB = 1",), "fail not_finite")
    assert [serving.chat(request)[0] for request in (REQUEST, REQUEST, other, REQUEST)] == [200] * 4
    assert len(serving.judge.batches) == 3
    assert [serving.chat(failing)[0] for _ in range(2)] == [500, 500]
    assert len(serving.judge.batches) == 5
    serving.stop()


def test_at_the_end_what_was_asked_is_answered(serving):
    serving.judge.held.clear()
    with ThreadPoolExecutor(2) as pool:
        asked = pool.submit(serving.chat)
        while not serving.judge.batches:
            assert not asked.done()
        serving.server.shutdown()
        finished = pool.submit(serving.server.finish)
        late = serving.server.service.respond("POST", CHAT, json.dumps({"messages": PROMPT.messages(REQUEST)}).encode())
        assert late[0] == 503
        assert not finished.done()
        serving.judge.held.set()
        assert asked.result()[0] == 200
        finished.result()
    with pytest.raises(ConnectionRefusedError):
        serving.chat()


def test_a_remote_judge_says_what_the_judge_itself_says():
    """The embedded judge in the mode that lets it write; tests/test_judge_attacks.py has both modes.

    Some of its notes take more tokens than it may write here.
    """
    settings = {"max_prompt_tokens": 128, "max_new_tokens": 144, "batch_size": 4, "dtype": jnp.float32}
    mesh = make_mesh(devices=jax.devices()[:1])
    judge = load_judge(MINI_JUDGE, mesh, prompt=MINI_JUDGE_PROMPT, mode="free", **settings)
    requests = of_one_bucket(judge, 12)
    requests += [JudgeRequest((), "x"), JudgeRequest(("AB is 5.",), "word " * 200)]
    expected = judge.judge(requests)
    serving = Serving(judge)
    client = connect_judge(serving.address, prompt=MINI_JUDGE_PROMPT, max_new_tokens=144, retries=0)
    judgements = client.judge(requests)
    serving.stop()
    assert {judgement.status for judgement in expected} == {"ok", "missing", "unreadable", "none", "too_long"}
    assert judgements == expected
    assert len({judgement.verdicts for judgement in judgements}) > 4
    assert CachedJudge(judge, 100).judge(requests + requests[::-1]) == expected + expected[::-1]


def of_one_bucket(judge: Judge, count: int) -> list[JudgeRequest]:
    """Requests of 97 to 128 tokens, which share the programs."""
    chosen = []
    for index in itertools.count():
        tokens = judge._processor.chat.encode(judge.prompt.messages(request := judge_case(index, "test")))
        if 96 < len(tokens) <= 128:
            chosen.append(request)
        if len(chosen) == count:
            return chosen
