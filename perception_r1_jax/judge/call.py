"""What all judges have in common: a call, to which requests are given as they come, and its judgements at the end."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence

from perception_r1_jax.judge.pictures import AnyPrompt, AnyRequest
from perception_r1_jax.judge.verdicts import Judgement

Judging = Callable[[], contextlib.AbstractContextManager]
"""Entered while a request is with the judge; perhaps in another thread, and many times at once."""


def never_stop() -> None:
    """For those who wait for the end."""


class JudgeCall(contextlib.AbstractContextManager):
    """Requests that come one after another, to be used as a context: leaving it gives up what is under way."""

    @abc.abstractmethod
    def add(self, requests: Sequence[AnyRequest]) -> None:
        """Takes further requests. Which are judged at once depends on the requests alone, and on their order."""

    @abc.abstractmethod
    def finish(self) -> list[Judgement]:
        """One judgement per request, in their order; to be called once."""


class AnyJudge(abc.ABC):
    """A judge on the mesh, a remote one, or one that keeps what either has said.

    Attributes:
        prompt: the templates that requests are written with.
        parameters, compilations: of the model and programs in this process.
    """

    prompt: AnyPrompt
    parameters: int
    compilations: int

    @abc.abstractmethod
    def begin(self, judging: Judging = contextlib.nullcontext, check: Callable[[], None] = never_stop) -> JudgeCall:
        """A call of this judge. Failures are statuses of judgements, and are never raised.

        Args:
            judging: tells what time judging takes.
            check: called now and then while somebody waits for the call; what it raises ends it.
        """

    def judge(self, requests: Sequence[AnyRequest]) -> list[Judgement]:
        """One judgement per request, in their order."""
        with self.begin() as call:
            call.add(requests)
            return call.finish()

    @abc.abstractmethod
    def take_metrics(self) -> dict[str, float]:
        """Of all calls since they were taken last, named "judge/..._rate"."""
