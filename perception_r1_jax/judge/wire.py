"""What goes over the wire between a judge behind HTTP and those who ask it: the part of OpenAI's chat completions
(https://platform.openai.com/docs/api-reference/chat) that judging needs.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from perception_r1_jax.judge.prompts import encodable
from perception_r1_jax.judge.verdicts import NOT_FINITE, TOO_LONG, TOO_MANY, UNFINISHED

CHAT, MODELS = "/chat/completions", "/models"
"""Where requests for an answer and for the list of models go, after an address such as http://localhost:8000/v1."""

ERROR_CODES = {
    "context_length_exceeded": TOO_LONG,
    "too_many_annotations": TOO_MANY,
    "logits_not_finite": NOT_FINITE,
    "thoughts_unfinished": UNFINISHED,
}
"""`error.code` of an answer that is an error -> status of the judgement. The first is OpenAI's, the others are ours."""

LENGTH_MESSAGE = "maximum context length"
"""What vLLM's message has, and OpenAI's, where a prompt is too long."""

MESSAGE_CHARACTERS = 200
"""Of an error's message that are kept, for a line in the log."""


class Garbled(ValueError):
    """Bytes that are not what was to come."""


def chat_request(messages: Sequence[Mapping[str, str]], model: str, max_new_tokens: int) -> bytes:
    """The body that asks for one greedy answer."""
    body = {"model": model, "messages": list(messages), "temperature": 0, "max_tokens": max_new_tokens}
    return json.dumps(body).encode()


def chat_answer(text: str, model: str, *, stopped: bool) -> dict[str, Any]:
    """The answer as `read_answer_text` and any other client reads it; `stopped` is false where it was cut."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop" if stopped else "length"}
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
    return {**head, "model": model, "choices": [choice]}


def model_list(names: Sequence[str]) -> dict[str, Any]:
    """The list of models, as `read_models` reads it."""
    head = {"object": "model", "created": 0, "owned_by": "perception_r1_jax"}
    return {"object": "list", "data": [{"id": name, **head} for name in names]}


def error_body(message: str, code: str) -> dict[str, Any]:
    """An error, as `read_error_status` and `read_error_message` read it."""
    return {"error": {"message": message, "type": "error", "code": code}}


def read_answer_text(content: bytes) -> str | None:
    """The text of an answer; None where the model has said nothing. Raises `Garbled`."""
    try:
        text = _read_json(content)["choices"][0]["message"]["content"]
    except (LookupError, TypeError) as error:
        raise Garbled("no choices[0].message.content") from error
    if not isinstance(text, str | None):
        raise Garbled(f"a content of type {type(text).__name__}")
    return text


def read_models(content: bytes) -> list[str]:
    """The names of the models. Raises `Garbled`."""
    try:
        return [str(model["id"]) for model in _read_json(content)["data"]]
    except (LookupError, TypeError) as error:
        raise Garbled("no list of models") from error


def read_error_status(content: bytes) -> str | None:
    """The status that an error's code stands for; None where it has none of `ERROR_CODES`. Never raises.

    vLLM gives numbers of HTTP for codes: there the message tells that a prompt is too long.
    """
    try:
        status = ERROR_CODES.get(_read_json(content)["error"]["code"])
    except (Garbled, LookupError, TypeError):
        return None
    return status or (TOO_LONG if LENGTH_MESSAGE in read_error_message(content) else None)


def read_error_message(content: bytes) -> str:
    """The beginning of an error's message, in one line; "" where it has none. Never raises."""
    try:
        message = _read_json(content)["error"]["message"]
    except (Garbled, LookupError, TypeError):
        return ""
    return encodable(" ".join(message.split())[:MESSAGE_CHARACTERS]) if isinstance(message, str) else ""


def _read_json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Garbled(f"no JSON in UTF-8: {error}") from error
