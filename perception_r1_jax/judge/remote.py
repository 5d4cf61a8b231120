"""The judge behind an OpenAI-compatible endpoint: requests in, judgements out, like the judge on the mesh.

The model writes its answer freely and the strict parser reads it. Whatever goes wrong on the way is the status of that
one judgement: nothing is raised, and nothing counts as a verdict that is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.background import BackgroundLoop, wait_for
from perception_r1_jax.judge.call import AnyJudge, JudgeCall, Judging, never_stop
from perception_r1_jax.judge.endpoint import Endpoint, Reply
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest, load_prompt
from perception_r1_jax.judge.verdicts import NONE, Judgement, read_answer
from perception_r1_jax.judge.wire import (
    CHAT,
    MODELS,
    Garbled,
    chat_request,
    read_answer_text,
    read_error_message,
    read_error_status,
    read_models,
)

GARBLED, NOT_SENT = "garbled", "not_sent"

LOST = 16
"""After so many requests in a row for which patience did not help, or `concurrency` of them where that is more, the
endpoint is lost, and what is left of the call is not sent: to be patient a thousand times would take hours."""


class RemoteJudge(AnyJudge):
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
        self._sent = self._attempts = 0

    def begin(self, judging: Judging = contextlib.nullcontext, check: Callable[[], None] = never_stop) -> RemoteCall:
        """As of `AnyJudge`; as many requests at a time as the endpoint may have.

        A request without annotations is not asked ("none"). Failures beside those of `parse_verdicts`: those of
        `Endpoint.ask`; "garbled" (an answer that is no chat completion); "too_long", "too_many" and "not_finite" where
        the server says so; "not_sent" (the endpoint was lost before).
        """
        return RemoteCall(self, self._endpoint, judging, check)

    def count(self, attempts: int) -> None:
        """Takes in how often a request was tried."""
        self._sent, self._attempts = self._sent + 1, self._attempts + attempts

    def take_metrics(self) -> dict[str, float]:
        """As of `AnyJudge`: attempts beyond the first per request sent; NaN where none was."""
        sent, attempts = self._sent, self._attempts
        self._sent = self._attempts = 0
        return {"judge/retry_rate": (attempts - sent) / sent if sent else math.nan}

    def write(self, request: JudgeRequest) -> bytes:
        """The body to send."""
        write = self.prompt.raw_messages if self._fidelity == "paper" else self.prompt.messages
        return chat_request(write(request), self.model, self._max_new_tokens)

    def read(self, reply: Reply, count: int) -> Judgement:
        """The judgement in the endpoint's reply, of so many annotations."""
        if reply.failure:
            status = read_error_status(reply.content) or reply.failure
            return Judgement(None, count, 0, status, detail=read_error_message(reply.content))
        try:
            return read_answer(read_answer_text(reply.content), count, self._fidelity)
        except Garbled:
            return Judgement(None, count, 0, GARBLED)


class RemoteCall(JudgeCall):
    """Requests that go out as soon as they are there, from a thread of this call."""

    def __init__(self, judge: RemoteJudge, endpoint: Endpoint, judging: Judging, check: Callable[[], None]):
        """Args: whose call it is, whom it asks, and as of `AnyJudge.begin`."""
        self._judge, self._endpoint, self._judging, self._check = judge, endpoint, judging, check
        self._client = endpoint.client()
        self._loop = BackgroundLoop("judge", self._client.aclose)
        self._judgements: list[Future[Judgement]] = []
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._in_vain, self._lost = 0, max(LOST, endpoint.concurrency)

    def __enter__(self) -> RemoteCall:
        self._loop.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.__exit__(*error)

    def add(self, requests: Sequence[JudgeRequest]) -> None:
        """As of `JudgeCall`; returns at once."""
        self._judgements += (self._loop.start(self._judge_one(request)) for request in requests)

    def finish(self) -> list[Judgement]:
        """As of `JudgeCall`."""
        return wait_for(self._judgements, self._check)

    async def _judge_one(self, request: JudgeRequest) -> Judgement:
        if not request.expected:
            return Judgement(None, 0, 0, NONE)
        with self._judging():
            reply = await self._ask(self._judge.write(request))
        return self._judge.read(reply, request.expected)

    async def _ask(self, body: bytes) -> Reply:
        async with self._places:
            if self._in_vain >= self._lost:
                return Reply(NOT_SENT, b"", 0, passing=True)
            reply = await self._endpoint.ask(self._client, "POST", CHAT, body)
        self._judge.count(reply.attempts)
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
