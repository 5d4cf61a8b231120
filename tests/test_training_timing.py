"""Where the seconds of a step go, by a clock that the test sets."""

from __future__ import annotations

import pytest

from perception_r1_jax.training import timing
from perception_r1_jax.training.timing import Clock


class Time:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def time(monkeypatch) -> Time:
    monkeypatch.setattr(timing, "time", time := Time())
    return time


def test_a_stage_within_another_interrupts_it(time):
    clock = Clock()
    time.passes(1)
    with clock("rollout"):
        time.passes(2)
        with clock("judge"):
            time.passes(4)
        time.passes(8)
    with clock("judge"):
        time.passes(16)
    time.passes(32)
    metrics = clock.metrics()
    assert metrics["time/rollout"] == 10
    assert metrics["time/judge"] == 20
    assert metrics["time/step"] == 63


def test_a_stage_that_raises_ends(time):
    def fail():
        with clock("rollout"):
            time.passes(1)
            raise RuntimeError

    clock = Clock()
    with pytest.raises(RuntimeError):
        fail()
    time.passes(2)
    assert clock.metrics() == {"time/rollout": 1, "time/step": 3}


def test_judging_is_exposed_where_the_step_waits_for_nothing_else(time):
    clock = Clock()
    with clock("rollout"):
        time.passes(1)
        request = clock.judging()
        request.__enter__()
        time.passes(2)  # hidden behind the rollout
        with clock("judge"):
            time.passes(4)  # exposed: the rollout is interrupted
    with clock("judge"):
        with clock.working(), clock.judging():
            time.passes(8)  # hidden behind other work; two requests at a time count once
        time.passes(16)  # exposed
        request.__exit__(None, None, None)
        time.passes(32)  # nothing is with the judge
    metrics = clock.metrics()
    assert (metrics["time/judge_hidden"], metrics["time/judge_exposed"]) == (10, 20)
    assert metrics["time/judge"] == 60


def test_without_judging_nothing_is_said_of_it(time):
    clock = Clock()
    with clock("train"), clock.working():
        time.passes(1)
    assert clock.metrics() == {"time/train": 1, "time/step": 1}
