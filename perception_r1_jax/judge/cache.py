"""Judgements kept, so that the same response to the same annotations is judged once."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest
from perception_r1_jax.judge.verdicts import NONE, Judgement


class AnyJudge(Protocol):
    """What the judge on the mesh and the remote one have in common.

    Attributes:
        prompt: the templates that requests are written with.
        parameters, compilations: of the model and programs in this process.
    """

    prompt: JudgePrompt
    parameters: int
    compilations: int

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """One judgement per request, in their order; a failure is a status and never raised."""

    def metrics(self) -> dict[str, float]:
        """Of the last call, named "judge/..._rate"."""


class CachedJudge:
    """Asks a judge about each pair of annotations and response once.

    A judgement does not depend on what is judged beside it, so what is kept changes no result. Failures are not kept:
    the next call asks again. Pairs are known by their SHA-256, so that a kept judgement takes some hundred bytes,
    however long the response.

    Args:
        judge: is asked.
        size: judgements kept, at most; those that were not used for longest go first.
    """

    def __init__(self, judge: AnyJudge, size: int):
        self._judge, self._size = judge, size
        self._kept: OrderedDict[bytes, Judgement] = OrderedDict()
        self._asked = self._sent = 0
        self.prompt, self.parameters = judge.prompt, judge.parameters

    @property
    def kept(self) -> int:
        """Judgements kept."""
        return len(self._kept)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return self._judge.compilations

    def judge(self, requests: Sequence[JudgeRequest]) -> list[Judgement]:
        """One judgement per request, in their order; pairs that are the same within the call are asked about once."""
        keys = [_key(request) for request in requests]
        known = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = {key: request for key, request in zip(keys, requests) if key not in known}
        known |= zip(fresh, self._judge.judge(list(fresh.values())))
        self._asked = sum(bool(request.annotations) for request in requests)
        self._sent = sum(bool(request.annotations) for request in fresh.values())
        for key in dict.fromkeys(keys):
            self._keep(key, known[key])
        return [known[key] for key in keys]

    def metrics(self) -> dict[str, float]:
        """Of the last call: the share of what was asked that was not passed on, and the judge's own metrics."""
        rate = 1 - self._sent / self._asked if self._asked else math.nan
        return {"judge/cache_hit_rate": rate, **self._judge.metrics()}

    def _keep(self, key: bytes, judgement: Judgement) -> None:
        if judgement.failed or judgement.status == NONE:
            return
        self._kept[key] = judgement
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)


def _key(request: JudgeRequest) -> bytes:
    digest = hashlib.sha256()
    for text in (*request.annotations, request.response):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.digest()
