"""A line of requests from many threads, answered together by one."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from perception_r1_jax.judge import waiting
from perception_r1_jax.judge.waiting import AnswerFailed, NotNow, WaitingLine


class Gate:
    """Answers n with 2n, once it is opened; keeps the batches and the threads that asked."""

    def __init__(self):
        self.open, self.batches, self.threads = threading.Event(), [], set()

    def __call__(self, numbers):
        self.batches.append(list(numbers))
        self.threads.add(threading.get_ident())
        assert self.open.wait(10)
        return [2 * number for number in numbers]


def until(condition) -> None:
    """Waits a little for what another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_lines_up_meanwhile_is_answered_together_each_once():
    gate = Gate()
    line = WaitingLine(gate)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(line.ask, 1)
        until(lambda: gate.batches)
        others = [pool.submit(line.ask, number) for number in (2, 3, 2, 4)]
        until(lambda: len(line) == 4)
        gate.open.set()
        assert [future.result() for future in (first, *others)] == [2, 4, 6, 4, 8]
    assert gate.batches[0] == [1]
    assert sorted(gate.batches[1]) == [2, 3, 4]
    assert len(gate.threads) == 1
    line.close()


def test_an_error_is_told_to_those_it_concerns_and_the_line_goes_on(caplog):
    def inverse(numbers):
        return [1 / number for number in numbers]

    line = WaitingLine(inverse)
    with pytest.raises(AnswerFailed, match="ZeroDivisionError"):
        line.ask(0)
    assert line.ask(4) == 0.25
    assert "1 requests failed" in caplog.text
    line.close()


def test_closing_answers_what_waits_and_refuses_the_rest():
    gate = Gate()
    line = WaitingLine(gate)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(line.ask, 1)
        until(lambda: gate.batches)
        second = pool.submit(line.ask, 2)
        until(lambda: len(line) == 1)
        closing = pool.submit(line.close)
        until(lambda: len(line) == 2)  # the end has lined up, too
        with pytest.raises(NotNow, match="stopping"):
            line.ask(3)
        gate.open.set()
        assert (first.result(), second.result(), closing.result()) == (2, 4, None)


def test_a_line_has_an_end(monkeypatch):
    monkeypatch.setattr(waiting, "MOST_WAITING", 2)
    gate = Gate()
    line = WaitingLine(gate)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(line.ask, 0)]
        until(lambda: gate.batches)
        futures += [pool.submit(line.ask, number) for number in (1, 2)]
        until(lambda: len(line) == 2)
        with pytest.raises(NotNow, match="2 requests are waiting"):
            line.ask(3)
        gate.open.set()
        assert [future.result() for future in futures] == [0, 2, 4]
    line.close()
