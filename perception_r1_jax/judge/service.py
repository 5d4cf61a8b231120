"""What a served judge says to each request, HTTP's bytes aside.

POST /v1/chat/completions   messages in the form of the judge's prompt -> its greedy answer
GET  /v1/models             the one model
GET  /health                {"status": "ok", "model": ..., "waiting": requests in line}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.cache import Kept, request_key
from perception_r1_jax.judge.on_mesh import Answer, Judge
from perception_r1_jax.judge.pictures import PicturePrompt
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.verdicts import NOT_FINITE, OK
from perception_r1_jax.judge.waiting import AnswerFailed, NotNow, WaitingLine
from perception_r1_jax.judge.wire import CHAT, ERROR_CODES, MODELS, chat_answer, error_body, model_list

logger = logging.getLogger(__name__)

ANSWERS_KEPT = 4096

_CODES = {status: code for code, status in ERROR_CODES.items()}
_FIXED = {"stream": (None, False), "n": (None, 1), "temperature": (None, 0)}
"""Fields of a request that can have only these values here."""


class Refused(Exception):
    """A request that gets an error: an HTTP status, a message and a code."""

    def __init__(self, status: int, message: str, code: str = "invalid_request"):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Asked(NamedTuple):
    """A request, and the most tokens that its client wants; None for no limit but the judge's."""

    request: JudgeRequest
    max_tokens: int | None


class _Answered(NamedTuple):
    """The answer to it, its tokens as text."""

    text: str
    stopped: bool
    status: str


class JudgeService:
    """Answers for one judge, which one thread asks; these methods may be called from many.

    Attributes:
        name: of the model, for clients.
    """

    def __init__(self, judge: Judge, name: str):
        """Raises `UserError` for a judge that sees: a request holds no pictures here."""
        if isinstance(judge.prompt, PicturePrompt):
            raise UserError(
                "a judge that sees pictures is not served over HTTP. Let the run hold it (config.judge.path = its "
                "folder, config.judge.sees = True), or load it with sees=False to judge by annotations."
            )
        self._judge, self.name = judge, name
        self._kept: Kept[tuple[bytes, int | None], _Answered] = Kept(ANSWERS_KEPT)
        self._line: WaitingLine[_Asked, _Answered] = WaitingLine(self._answer_all)
        self._routes = {
            "/health": ("GET", self._health),
            "/v1" + MODELS: ("GET", lambda _: model_list([name])),
            "/v1" + CHAT: ("POST", self._chat),
        }

    def respond(self, method: str, target: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """The HTTP status and the body of the response. Never raises."""
        try:
            return 200, self._respond(method, target, body)
        except Refused as refused:
            return refused.status, error_body(refused.message, refused.code)
        except NotNow as busy:
            return 503, error_body(f"{busy}; ask again later", "overloaded")
        except AnswerFailed as failed:
            return 500, error_body(f"the judge failed: {failed}; see the server's log", "judge_failed")
        except Exception:  # a defect in the code around the judge; others are served on
            logger.exception("%s %s failed", method, target)
            return 500, error_body("this request failed; see the server's log", "internal_error")

    def close(self) -> None:
        """Refuses what comes from now on, and waits until what is waiting has been answered."""
        self._line.close()

    def _respond(self, method: str, target: str, body: bytes) -> dict[str, Any]:
        path = target.partition("?")[0]
        if path not in self._routes:
            raise Refused(404, f"nothing at {path!r:.80}; there is {', '.join(self._routes)}", "not_found")
        allowed, handle = self._routes[path]
        if method != allowed:
            raise Refused(405, f"{path} takes {allowed}, not {method}", "method_not_allowed")
        return handle(body)

    def _health(self, _: bytes) -> dict[str, Any]:
        return {"status": "ok", "model": self.name, "waiting": len(self._line)}

    def _chat(self, body: bytes) -> dict[str, Any]:
        answered = self._line.ask(self._read(body))
        if answered.status != OK:
            status = 500 if answered.status == NOT_FINITE else 400
            raise Refused(status, f"this request has no answer: {answered.status}", _CODES[answered.status])
        return chat_answer(answered.text, self.name, stopped=answered.stopped)

    def _read(self, body: bytes) -> _Asked:
        """Raises `Refused` naming what cannot be."""
        try:
            fields = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is no JSON in UTF-8: {error}") from error
        if not isinstance(fields, dict):
            raise Refused(400, f"the body is a {type(fields).__name__}, no JSON object")
        if fields.get("model", self.name) != self.name:
            raise Refused(404, f"no model {fields['model']!r:.80} here; it is {self.name!r}", "model_not_found")
        for name, values in _FIXED.items():
            if fields.get(name) not in values:
                raise Refused(400, f"{name} is {fields[name]!r:.80}; here it can only be {values[-1]!r}")
        return _Asked(self._read_messages(fields.get("messages")), _max_tokens(fields))

    def _read_messages(self, messages: object) -> JudgeRequest:
        try:
            request = self._judge.read_messages(messages)
        except UserError as error:
            raise Refused(400, str(error)) from error
        if not request.annotations:
            raise Refused(400, "the messages hold no annotation to judge")
        return request

    def _answer_all(self, asked: Sequence[_Asked]) -> list[_Answered]:
        """Asks the judge about what it has not answered: a client that left meanwhile comes back for its answer."""
        keys = [(request_key(one.request), one.max_tokens) for one in asked]
        known = {key: self._kept.get(key) for key in keys}
        new = {key: one for key, one in zip(keys, asked) if known[key] is None}
        if new:
            answers = self._judge.answer([one.request for one in new.values()])
            known |= {key: self._cut(answer, one.max_tokens) for (key, one), answer in zip(new.items(), answers)}
        for key, answered in known.items():
            if answered.status == OK:
                self._kept.keep(key, answered)
        return [known[key] for key in keys]

    def _cut(self, answer: Answer, max_tokens: int | None) -> _Answered:
        """A greedy answer under a lower limit is the beginning of it."""
        tokens = answer.tokens[:max_tokens]
        stopped = answer.stopped and len(tokens) == len(answer.tokens)
        return _Answered(self._judge.decode(tokens), stopped, answer.status)


def _max_tokens(fields: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):  # OpenAI's newer name, and the older one
        value = fields.get(name)
        if value is not None:
            if type(value) is not int or value < 1:
                raise Refused(400, f"{name} is {value!r:.80}; it must be a whole number of at least 1")
            return value
    return None
