"""Seconds of each stage of a step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """`with clock("rollout"): ...` for each stage; `metrics()` has the seconds of each and of the whole step."""

    def __init__(self):
        self._started = time.monotonic()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Times a stage, or adds to the time that it had."""
        started = time.monotonic()
        yield
        self._seconds[stage] = self._seconds.get(stage, 0.0) + time.monotonic() - started

    def metrics(self) -> dict[str, float]:
        """`time/STAGE` and `time/step`, in seconds."""
        stages = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        return {**stages, "time/step": time.monotonic() - self._started}
