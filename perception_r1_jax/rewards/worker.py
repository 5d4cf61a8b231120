"""The process behind an accuracy worker: `python -m perception_r1_jax.rewards.worker FD FIDELITY SECONDS`.

It inherits one end of a socket pair as file descriptor FD, tests itself, reports None or what is wrong, and
then answers each (response, truth) with an `Accuracy` until the other end closes.
"""

from __future__ import annotations

import logging
import math
import resource
import signal
import sys
from multiprocessing.connection import Connection

from perception_r1_jax.rewards.grading import SELF_TEST, grade

MEMORY_BYTES = 4 << 30
"""Address space of a worker: a tower of powers must not take the trainer's memory."""

GRACE_SECONDS = 5


def main(descriptor: str, fidelity: str, deadline_seconds: str) -> None:
    """Serves until the connection's other end is closed."""
    # A Ctrl-C or a preemption notice to the whole process group is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    logging.disable(logging.CRITICAL)
    serve(Connection(int(descriptor)), fidelity, math.ceil(float(deadline_seconds)) + GRACE_SECONDS)


def serve(connection: Connection, fidelity: str, alarm_seconds: int) -> None:
    """Reports the self-test, then grades one item after the other."""
    connection.send(self_test(fidelity))
    while True:
        try:
            response, truth = connection.recv()
        except EOFError:
            return
        # The parent kills a worker that is late. Where the parent itself is gone, the alarm does.
        signal.alarm(alarm_seconds)
        result = grade(response, truth, fidelity)
        signal.alarm(0)
        connection.send(result)


def self_test(fidelity: str) -> str | None:
    """None where every known pair is graded right, else a sentence about the first that is not."""
    for response, truth, expected in SELF_TEST:
        value = grade(response, truth, fidelity).value
        if value != expected:
            return f"{response!r} against the truth {truth!r} scored {value}, not {expected}"
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
