"""One side of a comparison in a process of its own: settings of one do not touch another, and its memory is its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any
from unittest import mock

from perception_r1_jax.training.run_record import peak_rss_bytes

MIB = 2**20

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**28),
    "MALLOC_ARENA_MAX": "1",
}
"""Has glibc's malloc keep what is freed for the next step, in place of giving it back and having it cleared anew."""


class Side:
    """What `make(*args)` returns there; called, it is called there, and returns what that returns.

    With `keep_freed_memory` malloc does so there.
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any, keep_freed_memory: bool = False):
        context = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, context, _start, (make, *args))
        with mock.patch.dict(os.environ, KEEP_FREED_MEMORY if keep_freed_memory else {}):
            self._process.submit(os.getpid).result()  # the process begins, which is when malloc reads them

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
