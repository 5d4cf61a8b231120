"""Seconds of each stage of a step, and how much of judging is hidden behind other work."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

JUDGE = "judge"
"""The stage in which the loop itself runs the judge, or waits for it."""


class Clock:
    """Tells where the seconds of a step go.

    `with clock("rollout"): ...` for each stage of the loop; a stage within another one interrupts it, so that together
    they take no longer than the step. `judging` and `working` are for what goes on beside the loop: they may be
    entered in any thread, and many times at once.
    """

    def __init__(self):
        self._started = self._told = time.monotonic()
        self._lock = threading.Lock()
        self._stages: list[str] = []
        self._beside: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._hidden = self._exposed = 0.0

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times a stage, or adds to the time that it had."""
        with self._lock:
            self._tell()
            self._stages.append(stage)
            self._seconds.setdefault(stage, 0.0)
        try:
            yield
        finally:
            with self._lock:
                self._tell()
                self._stages.pop()

    def judging(self) -> AbstractContextManager[None]:
        """To be entered while a request is with the judge."""
        return self._while("judging")

    def working(self) -> AbstractContextManager[None]:
        """To be entered while other work of the step is done beside the loop."""
        return self._while("working")

    def metrics(self) -> dict[str, float]:
        """In seconds: `time/STAGE`, `time/step`, and in a step that judges `time/judge_hidden`, `time/judge_exposed`.

        A second with a request with the judge is exposed if the loop is in the stage "judge" and nothing works beside
        it, so that the step waits for the judge alone; else it is hidden.
        """
        with self._lock:
            self._tell()
        judge = {"judge_hidden": self._hidden, "judge_exposed": self._exposed} if JUDGE in self._seconds else {}
        named = self._seconds | judge | {"step": self._told - self._started}
        return {f"time/{name}": seconds for name, seconds in named.items()}

    @contextmanager
    def _while(self, what: str) -> Iterator[None]:
        self._count(what, 1)
        try:
            yield
        finally:
            self._count(what, -1)

    def _count(self, what: str, change: int) -> None:
        with self._lock:
            self._tell()
            self._beside[what] += change

    def _tell(self) -> None:
        """Puts the seconds since the last change where they belong."""
        now = time.monotonic()
        seconds, self._told = now - self._told, now
        stage = self._stages[-1] if self._stages else None
        if stage:
            self._seconds[stage] += seconds
        if self._beside["judging"] and stage == JUDGE and not self._beside["working"]:
            self._exposed += seconds
        elif self._beside["judging"]:
            self._hidden += seconds
