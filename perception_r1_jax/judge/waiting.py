"""Requests of many clients, answered together by one thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked", bound=Hashable)
Answered = TypeVar("Answered")

MOST_WAITING = 4096
_END = None


class NotNow(Exception):
    """Too many requests are waiting, or none is taken any more; another time may be better."""


class AnswerFailed(Exception):
    """`answer` has raised something on the request's batch; it is logged, and the message has its name."""


class WaitingLine(Generic[Asked, Answered]):
    """One thread answers all that is waiting at once, while the next requests line up.

    Args:
        answer: from different requests to their answers, in their order. It runs in the one thread alone.
    """

    def __init__(self, answer: Callable[[Sequence[Asked]], Sequence[Answered]]):
        self._answer = answer
        self._waiting: queue.Queue[tuple[Asked, Future[Answered]] | None] = queue.Queue()
        self._closed, self._lock = False, threading.Lock()
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Requests that are waiting, without those that are being answered."""
        return self._waiting.qsize()

    def ask(self, request: Asked) -> Answered:
        """Waits for the answer; to be called from many threads.

        Raises:
            NotNow: no place in the line.
            AnswerFailed: there is none.
        """
        future: Future[Answered] = Future()
        with self._lock:  # nothing lines up behind the end
            if self._closed:
                raise NotNow("this server is stopping")
            if len(self) >= MOST_WAITING:
                raise NotNow(f"{MOST_WAITING} requests are waiting")
            self._waiting.put((request, future))
        return future.result()

    def close(self) -> None:
        """Takes no request any more, and waits until those in line are answered."""
        with self._lock:
            self._closed = True
            self._waiting.put(_END)
        self._thread.join()

    def _run(self) -> None:
        items = []
        while _END not in items:
            items = [self._waiting.get()]
            while not self._waiting.empty():
                items.append(self._waiting.get())
            self._answer_all([item for item in items if item is not _END])

    def _answer_all(self, batch: Sequence[tuple[Asked, Future[Answered]]]) -> None:
        different = list(dict.fromkeys(request for request, _ in batch))
        try:
            answers = dict(zip(different, self._answer(different)))
        except Exception as error:
            logger.exception("%d requests failed", len(batch))
            for _, future in batch:
                future.set_exception(AnswerFailed(type(error).__name__))
            return
        for request, future in batch:
            future.set_result(answers[request])
