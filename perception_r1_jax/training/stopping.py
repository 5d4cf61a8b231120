"""Stopping on request: responses on their way are given up, any other work of a step is finished; the run is saved."""

from __future__ import annotations

import signal
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console


class Stopped(Exception):
    """Ends what can be given up and made again: `StopRequest.check` raises it."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `received`; a second one stops at once, as usual.

    Processes that run the same programs on one mesh must stop at the same place, or those that go on wait for the
    others for ever. So they agree, where all of them pass in the same order: between two stretches of decoding, and at
    the end of a step.

    Attributes:
        received: the name of the signal to this process, None until one has come.
    """

    def __init__(self, console: Console):
        self._console = console
        self._usual: dict[int, signal.Handlers] = {}
        self.received: str | None = None

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._usual[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def agreed(self) -> bool:
        """Whether a signal has come to any process. All must ask, at the same place of the same programs."""
        received = self.received is not None
        if jax.process_count() > 1:
            return bool(multihost_utils.process_allgather(np.array(received)).any())
        return received

    def check(self, *_: object) -> None:
        """Raises `Stopped` if `agreed`. Takes whatever a progress report passes."""
        if self.agreed():
            raise Stopped

    def check_waiting(self) -> None:
        """Raises `Stopped` if a signal has come; for those who wait by the clock, and so in no common order.

        With several processes it never does: they go on to the next place where they agree.
        """
        if jax.process_count() == 1:
            self.check()

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self.__exit__()
        self._console.print(f"{self.received}: stopping once nothing is lost by it; once more to stop at once.")
