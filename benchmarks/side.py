"""One side of a comparison in a process of its own: settings of one do not touch another, and its memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from perception_r1_jax.training.run_record import peak_rss_bytes

MIB = 2**20


class Side:
    """What `make(*args)` returns there; called, it is called there, and returns what that returns."""

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any):
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, _start, (make, *args))

    def __call__(self) -> Any:
        return self._process.submit(_call).result()

    def peak(self) -> float:
        """The most memory so far, in MiB."""
        return self._process.submit(peak_rss_bytes).result() / MIB

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()


_here: dict[str, Callable[[], Any]] = {}


def _start(make: Callable[..., Callable[[], Any]], *args: Any) -> None:
    _here["run"] = make(*args)


def _call() -> Any:
    return _here["run"]()
