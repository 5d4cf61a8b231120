"""An engine on a mesh across two processes: the tokens of one process, and a stop that both agree on."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from perception_r1_jax.inference.engine import ignore_progress
from tests import one_of_two
from tests.conftest import REPOSITORY


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def two():
    """What the two processes, of one device each, have printed."""
    flags = re.sub(r"(device_count)=\d+", r"\1=1", os.environ["XLA_FLAGS"])
    command = [sys.executable, "-m", "tests.one_of_two"]
    address, environment = free_address(), {**os.environ, "XLA_FLAGS": flags}
    processes = [
        subprocess.Popen(
            [*command, str(rank), address], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        return [json.loads(process.communicate(timeout=240)[0].splitlines()[-1]) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_two_processes_draw_what_one_draws(two):
    alone = one_of_two.generate(one_of_two.make_engine(jax.devices()[:2]), ignore_progress)
    for process in two:
        assert process["tokens"] == alone.tokens.tolist()


def test_a_signal_to_one_of_them_stops_both_at_the_same_look(two):
    other, signalled = two
    assert (signalled["received"], other["received"]) == ("SIGTERM", None)
    for process in two:
        assert process["stopped"]
        assert process["looks"] == one_of_two.SIGNAL_AT
