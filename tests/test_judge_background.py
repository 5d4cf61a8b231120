"""Coroutines beside their caller: results in order, the first failure, a wait that ends when its check says so."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from perception_r1_jax.judge.background import BackgroundLoop, wait_for


class Enough(Exception):
    """What the check raises."""


async def later(value, seconds: float = 0.0):
    await asyncio.sleep(seconds)
    if isinstance(value, Exception):
        raise value
    return value


def never() -> None:
    """Lets everything be waited for."""


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_results_come_in_order_and_the_thread_ends():
    closed = []

    async def close():
        closed.append(threading.current_thread().name)

    with BackgroundLoop("beside", close) as loop:
        assert wait_for([loop.start(later(1, 0.1)), loop.start(later(2))], never) == [1, 2]
        assert "beside" in names()
        assert closed == []
    assert closed == ["beside"]
    assert "beside" not in names()
    assert wait_for([], never) == []


def test_a_failure_is_raised_without_waiting_for_the_others():
    started = time.monotonic()
    with BackgroundLoop("beside", later_none) as loop, pytest.raises(ValueError, match="wrong"):
        wait_for([loop.start(later(1, 60)), loop.start(later(ValueError("wrong")))], never)
    assert time.monotonic() - started < 20


def test_what_the_check_raises_ends_the_wait_and_cancels_what_runs():
    ended = []

    async def patient():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    def check():
        raise Enough

    with BackgroundLoop("beside", later_none) as loop:
        done = loop.start(later(3))
        done.result()
        assert wait_for([done], check) == [3], "what is there needs no wait"
        with pytest.raises(Enough):
            wait_for([loop.start(patient())], check)
    assert ended == [True]
    assert "beside" not in names()


async def later_none() -> None:
    """Nothing to close."""
