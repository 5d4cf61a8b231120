"""Coroutines in a thread of their own, so that their caller can do something else meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TypeVar

Result = TypeVar("Result")

CHECK_SECONDS = 0.2


class BackgroundLoop:
    """An event loop in a thread. As a context, at whose end what still runs is cancelled, and the thread ends.

    Args:
        name: of the thread.
        close: the last that runs there.
    """

    def __init__(self, name: str, close: Callable[[], Coroutine[None, None, None]]):
        self._loop, self._close = asyncio.new_event_loop(), close
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def start(self, work: Coroutine[None, None, Result]) -> Future[Result]:
        """Runs a coroutine beside the others; to be called from any thread but the loop's."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def __enter__(self) -> BackgroundLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.start(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._close()


def wait_for(futures: Iterable[Future[Result]], check: Callable[[], None]) -> list[Result]:
    """All results in their order. Raises what one of them has raised, or what `check` raises while they are waited for.

    The check comes every `CHECK_SECONDS`, so that a signal to this process is soon noticed.
    """
    futures = list(futures)
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, CHECK_SECONDS, FIRST_EXCEPTION)
        for future in done:
            future.result()
        if waiting:
            check()
    return [future.result() for future in futures]
