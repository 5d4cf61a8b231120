"""Stopping on request: responses on their way are given up, any other work of a step is finished; the run is saved."""

from __future__ import annotations

import signal
from types import FrameType

from rich.console import Console


class Stopped(Exception):
    """Ends what can be given up and made again: `StopRequest.check` raises it."""


class StopRequest:
    """While entered, the first SIGINT or SIGTERM sets `received`; a second one stops at once, as usual.

    Attributes:
        received: the signal's name, None until one has come.
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

    def check(self, *_: object) -> None:
        """Raises `Stopped` if a signal has come. Takes whatever a progress report passes."""
        if self.received:
            raise Stopped(self.received)

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._console.print(f"{self.received}: stopping once nothing is lost by it; once more to stop at once.")
        self.__exit__()
