"""Judgements kept, so that the same response is judged once by the same annotations or pictures."""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from typing import Generic, TypeVar

from perception_r1_jax.judge.call import AnyJudge, JudgeCall, Judging, never_stop
from perception_r1_jax.judge.pictures import AnyRequest
from perception_r1_jax.judge.verdicts import NONE, Judgement

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """Values by key, so many at most; those that were not used for longest go first."""

    def __init__(self, size: int):
        self._size = size
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value kept under a key; None where there is none."""
        return self._values.get(key)

    def keep(self, key: Key, value: Value) -> None:
        """Keeps a value, which counts as used just now."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)


class CachedJudge(AnyJudge):
    """Asks a judge about each pair of annotations and response once, or of pictures with their question and response.

    A judgement does not depend on what is judged beside it but for rounding, so what is kept changes no more than that.
    A run that was stopped begins with nothing kept: where two verdicts are equally likely, or rewards are
    probabilities, it may differ in last bits from one that was not. Failures are not kept: the next call asks again.
    Pairs are known by their SHA-256, so that a kept judgement takes some hundred bytes, however long the response.

    Args:
        judge: is asked.
        size: judgements kept, at most; those that were not used for longest go first.
    """

    def __init__(self, judge: AnyJudge, size: int):
        self._judge = judge
        self._kept: Kept[bytes, Judgement] = Kept(size)
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

    def begin(self, judging: Judging = nullcontext, check: Callable[[], None] = never_stop) -> CachedCall:
        """As of `AnyJudge`; pairs that are the same within the call are asked about once."""
        return CachedCall(self, self._judge.begin(judging, check))

    def count(self, asked: int, sent: int) -> None:
        """Takes in how many requests a call was asked, and how many of them it has passed on."""
        self._asked, self._sent = self._asked + asked, self._sent + sent

    def look_up(self, key: bytes) -> Judgement | None:
        """The judgement kept of a pair; None where there is none."""
        return self._kept.get(key)

    def keep(self, key: bytes, judgement: Judgement) -> None:
        """Keeps the judgement of a pair if it is one; the pair counts as used just now."""
        if not judgement.failed and judgement.status != NONE:
            self._kept.keep(key, judgement)

    def take_metrics(self) -> dict[str, float]:
        """As of `AnyJudge`: the share of what was asked that was not passed on, and the judge's own metrics."""
        hit_rate = 1 - self._sent / self._asked if self._asked else math.nan
        self._asked = self._sent = 0
        return {"judge/cache_hit_rate": hit_rate, **self._judge.take_metrics()}


class CachedCall(JudgeCall):
    """A call that passes on what is not known yet."""

    def __init__(self, cache: CachedJudge, call: JudgeCall):
        """Args: the memory, and the call of its judge."""
        self._cache, self._call = cache, call
        self._keys: list[bytes] = []
        self._known: dict[bytes, Judgement | None] = {}  # None until it is judged

    def __enter__(self) -> CachedCall:
        self._call.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._call.__exit__(*error)

    def add(self, requests: Sequence[AnyRequest]) -> None:
        """As of `JudgeCall`."""
        keyed = [(request_key(request), request) for request in requests]
        self._keys += (key for key, _ in keyed)
        new = {key: request for key, request in keyed if key not in self._known}
        self._known |= {key: self._cache.look_up(key) for key in new}
        fresh = [request for key, request in new.items() if self._known[key] is None]
        self._cache.count(*(sum(request.expected > 0 for request in each) for each in (requests, fresh)))
        self._call.add(fresh)

    def finish(self) -> list[Judgement]:
        """As of `JudgeCall`; from now on its judgements are kept."""
        passed_on = [key for key, judgement in self._known.items() if judgement is None]
        self._known |= zip(passed_on, self._call.finish())
        for key, judgement in self._known.items():
            self._cache.keep(key, judgement)
        return [self._known[key] for key in self._keys]


def request_key(request: AnyRequest) -> bytes:
    """SHA-256 of all that a judgement depends on."""
    digest = hashlib.sha256()
    for part in request.content:
        encoded = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(encoded), encoded))
    return digest.digest()
