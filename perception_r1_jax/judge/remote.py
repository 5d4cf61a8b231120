"""The judge behind an OpenAI-compatible endpoint: requests in, judgements out, like the judge on the mesh.

The model writes its answer freely and the strict parser reads it. Whatever goes wrong on the way is the status of that
one judgement: nothing is raised, and nothing counts as a verdict that is none.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path

import httpx2

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.endpoint import Endpoint, Reply
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest, load_prompt
from perception_r1_jax.judge.verdicts import NONE, Judgement, read_answer
from perception_r1_jax.judge.wire import (
    CHAT,
    MODELS,
    Garbled,
    chat_request,
    read_answer_text,
    read_error_status,
    read_models,
)

GARBLED, NOT_SENT = "garbled", "not_sent"

LOST = 16
"""After so many requests in a row for which patience did not help, or `concurrency` of them where that is more, the
endpoint is lost, and what is left of the call is not sent: to be patient a thousand times would take hours."""


class RemoteJudge:
    """A judging LLM behind an endpoint.

    Attributes:
        prompt: the templates that requests are written with.
        model: its name at the endpoint.
        parameters, compilations: 0, for neither are here.
    """

    parameters = compilations = 0

    def __init__(
        self,
        endpoint: Endpoint,
        model: str,
        prompt: JudgePrompt,
        *,
        max_new_tokens: int,
        fidelity: str = "default",
    ):
        """Args as in `config.judge`; with fidelity "paper" texts are pasted in and answers read as the authors do."""
        self.prompt, self.model = prompt, model
        self._endpoint, self._max_new_tokens, self._fidelity = endpoint, max_new_tokens, fidelity
        self._last: _Call | None = None

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """One judgement per request, in their order; as many requests at a time as the endpoint may have.

        A request without annotations is not asked ("none"). Failures beside those of `parse_verdicts`: those of
        `Endpoint.ask`; "garbled" (an answer that is no chat completion); "too_long", "too_many" and "not_finite" where
        the server says so; "not_sent" (the endpoint was lost before).
        """
        return asyncio.run(self._judge(requests))

    def metrics(self) -> dict[str, float]:
        """Of the last call: attempts beyond the first per request sent; NaN where none was."""
        sent, attempts = (self._last.sent, self._last.attempts) if self._last else (0, 0)
        return {"judge/retry_rate": (attempts - sent) / sent if sent else math.nan}

    async def _judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        async with self._endpoint.client() as client:
            self._last = call = _Call(self._endpoint, client)
            return await asyncio.gather(*(self._judge_one(call, request) for request in requests))

    async def _judge_one(self, call: _Call, request: JudgeRequest) -> Judgement:
        count = len(request.annotations)
        if count == 0:
            return Judgement(None, 0, 0, NONE)
        write = self.prompt.raw_messages if self._fidelity == "paper" else self.prompt.messages
        reply = await call.ask(chat_request(write(request), self.model, self._max_new_tokens))
        if reply.failure:
            return Judgement(None, count, 0, read_error_status(reply.content) or reply.failure)
        try:
            return read_answer(read_answer_text(reply.content), count, self._fidelity)
        except Garbled:
            return Judgement(None, count, 0, GARBLED)


class _Call:
    """One call's requests under way, and whether the endpoint still answers any.

    Attributes:
        sent, attempts: requests, and how often they were tried.
    """

    def __init__(self, endpoint: Endpoint, client: httpx2.AsyncClient):
        self.sent = self.attempts = 0
        self._endpoint, self._client = endpoint, client
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._in_vain, self._lost = 0, max(LOST, endpoint.concurrency)

    async def ask(self, body: bytes) -> Reply:
        async with self._places:
            if self._in_vain >= self._lost:
                return Reply(NOT_SENT, b"", 0, passing=True)
            reply = await self._endpoint.ask(self._client, "POST", CHAT, body)
        self.sent, self.attempts = self.sent + 1, self.attempts + reply.attempts
        self._in_vain = self._in_vain + 1 if reply.passing else 0
        return reply


def connect_judge(
    address: str,
    *,
    model: str = "",
    prompt: str | Path = "",
    max_new_tokens: int = 512,
    timeout_seconds: float = 120.0,
    retries: int = 3,
    concurrency: int = 32,
    seed: int = 0,
    fidelity: str = "default",
) -> RemoteJudge:
    """The judge at an address, once it has told its models.

    Args as in `config.judge`; `seed` is of the waits between attempts.

    Raises:
        UserError: an address that cannot be, no server there, or not this model. Also what reading the prompt raises.
    """
    endpoint = Endpoint(address, timeout_seconds=timeout_seconds, retries=retries, concurrency=concurrency, seed=seed)
    templates = load_prompt(prompt)
    name = asyncio.run(_find_model(endpoint, model))
    return RemoteJudge(endpoint, name, templates, max_new_tokens=max_new_tokens, fidelity=fidelity)


async def _find_model(endpoint: Endpoint, wanted: str) -> str:
    """The model's name; the only one that the endpoint has where none is wanted."""
    async with endpoint.client() as client:
        reply = await endpoint.ask(client, "GET", MODELS)
    if wanted and reply.failure in ("http_404", "http_405", "http_501"):
        return wanted  # not every server has a list
    if reply.failure:
        advice = "Start the server, or correct the address; where it has no list of models, set config.judge.model."
        raise UserError(f"judge {endpoint.url}: no list of models there ({reply.failure}). {advice}")
    try:
        names = read_models(reply.content)
    except Garbled as error:
        raise UserError(f"judge {endpoint.url}{MODELS}: {error}. Is this an OpenAI-compatible endpoint?") from error
    if wanted in names or (not wanted and len(names) == 1):
        return wanted or names[0]
    raise UserError(f"judge {endpoint.url} has the models {names}; set config.judge.model to one, it is {wanted!r}.")
