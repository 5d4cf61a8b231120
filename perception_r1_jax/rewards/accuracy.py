"""The accuracy reward: worker processes that stay, a deadline for each item, and no zero for a failure.

A worker is a fresh interpreter (never a fork of this process, whose threads JAX holds, and never a
re-import of the main script) at the other end of a socket pair. One that misses an item's deadline is
killed and replaced; the item is a named failure and the others are graded all the same.
"""

from __future__ import annotations

import atexit
import functools
import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Pipe, wait
from pathlib import Path

from perception_r1_jax.rewards.grading import TIMED_OUT, WORKER_DIED, Accuracy

FIDELITIES = ("default", "paper")
DEADLINE_SECONDS = 5.0
BOOT_SECONDS = 120.0
BOOT_ATTEMPTS = 3
SOURCE_ROOT = str(Path(__file__).resolve().parents[2])


def accuracy_reward(response: str, answer: str) -> float:
    """1.0 where the response's answer equals the ground truth `answer`, 0.0 where it does not.

    NaN, never 0.0, where that is not known: the comparison took longer than `DEADLINE_SECONDS` or killed
    its worker, or the ground truth is empty or unreadable. The first call also starts the one worker.
    """
    value = _own_pool().score([(response, answer)])[0].value
    return math.nan if value is None else value


@functools.cache
def _own_pool() -> AccuracyPool:
    pool = AccuracyPool(workers=1)
    atexit.register(pool.close)
    return pool


class AccuracyPool:
    """Worker processes that grade (response, truth) pairs. A context manager; `score` is thread-safe."""

    def __init__(self, workers: int, deadline_seconds: float = DEADLINE_SECONDS, fidelity: str = "default"):
        """Starts the workers and returns once each has passed its self-test.

        Args:
            workers: number of processes.
            deadline_seconds: wall-clock time that one item may take.
            fidelity: "default", or "paper" for the authors' extraction, where a failed item scores 0.

        Raises:
            RuntimeError: a worker does not start, or grades a known pair wrongly.
        """
        if workers < 1 or not deadline_seconds > 0:
            raise ValueError(f"{workers} workers with {deadline_seconds} seconds an item: both must be positive")
        if fidelity not in FIDELITIES:
            raise ValueError(f"fidelity is {fidelity!r}; use one of {', '.join(FIDELITIES)}")
        self._deadline, self._fidelity, self._lock = deadline_seconds, fidelity, threading.Lock()
        self._workers: list[_Worker] = []
        self._failed_boots = 0  # in a row
        try:
            self._workers += (self._new_worker() for _ in range(workers))
            while any(worker.booting for worker in self._workers):
                self._collect([])
        except BaseException:
            self.close()
            raise

    def score(self, items: Sequence[tuple[str, str]]) -> list[Accuracy]:
        """Grades (response, truth) pairs and returns their accuracies in the same order.

        No input makes it raise or hang: an item costs at most its deadline and its worker's restart.
        """
        results: list[Accuracy | None] = [None] * len(items)
        with self._lock:
            try:
                self._run(items, results)
            except BaseException:  # Answers to an interrupted batch must not be taken for those to the next one.
                self._abandon_jobs()
                raise
        return results

    def close(self) -> None:
        """Ends the workers."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def __enter__(self) -> AccuracyPool:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _new_worker(self) -> _Worker:
        return _Worker(self._fidelity, self._deadline)

    def _run(self, items: Sequence[tuple[str, str]], results: list[Accuracy | None]) -> None:
        pending = deque(range(len(items)))
        while pending or any(worker.job is not None for worker in self._workers):
            for index, worker in enumerate(self._workers):
                if pending and worker.idle:
                    self._give(index, pending, items)
            self._collect(results)

    def _abandon_jobs(self) -> None:
        for index, worker in enumerate(self._workers):
            if worker.job is not None:
                self._replace(index)

    def _give(self, index: int, pending: deque[int], items: Sequence[tuple[str, str]]) -> None:
        try:
            self._workers[index].start(pending[0], items[pending[0]], self._deadline)
            pending.popleft()
        except OSError:  # The worker died while it was idle: not the fault of this item, which stays pending.
            self._replace(index)

    def _collect(self, results: list[Accuracy | None]) -> None:
        """Waits until a worker has reported or is late, and takes all that is there."""
        waiting = [worker for worker in self._workers if not worker.idle]
        patience = max(0.0, min(worker.due for worker in waiting) - time.monotonic())
        readable = wait([worker.connection for worker in waiting], patience)
        for index, worker in enumerate(self._workers):
            if worker.connection in readable:
                self._receive(index, results)
            elif not worker.idle and time.monotonic() >= worker.due:
                self._fail(index, TIMED_OUT, results)

    def _receive(self, index: int, results: list[Accuracy | None]) -> None:
        worker = self._workers[index]
        try:
            report = worker.connection.recv()
        except (EOFError, OSError):
            self._fail(index, WORKER_DIED, results)
            return
        if worker.booting:
            _check_self_test(report)
            self._failed_boots = 0
        else:
            results[worker.job] = report
        worker.rest()

    def _fail(self, index: int, status: str, results: list[Accuracy | None]) -> None:
        job, booting = self._workers[index].job, self._workers[index].booting
        exit_code = self._replace(index)
        if not booting:
            results[job] = Accuracy(0.0 if self._fidelity == "paper" else None, status)
            return
        self._failed_boots += 1
        if self._failed_boots == BOOT_ATTEMPTS:
            raise RuntimeError(
                f"accuracy workers did not start, {BOOT_ATTEMPTS} in a row "
                f"(the last one {status} with exit code {exit_code}); see their messages on stderr"
            )

    def _replace(self, index: int) -> int:
        exit_code = self._workers[index].kill()
        self._workers[index] = self._new_worker()
        return exit_code


def _check_self_test(report: str | None) -> None:
    if report is not None:
        raise RuntimeError(f"the accuracy scorer fails its self-test: {report}; check the math-verify version")


class _Worker:
    """A grading process: booting until its first report, then idle or busy with `job` until `due`."""

    def __init__(self, fidelity: str, deadline_seconds: float):
        self.connection, other_end = Pipe()
        descriptor = other_end.fileno()
        command = [sys.executable, "-m", "perception_r1_jax.rewards.worker"]
        path = os.pathsep.join(filter(None, [SOURCE_ROOT, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [*command, str(descriptor), fidelity, str(deadline_seconds)],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
        other_end.close()
        self.booting, self.job, self.due = True, None, time.monotonic() + BOOT_SECONDS

    @property
    def idle(self) -> bool:
        return not self.booting and self.job is None

    def start(self, job: int, item: tuple[str, str], deadline_seconds: float) -> None:
        self.connection.send(item)
        self.job, self.due = job, time.monotonic() + deadline_seconds

    def rest(self) -> None:
        self.booting, self.job = False, None

    def kill(self) -> int:
        """Ends the process, at once and whatever it does; returns its exit code."""
        self.connection.close()
        self.process.kill()
        return self.process.wait()
