"""Programs that benchmarks ask over a pipe."""

from __future__ import annotations

import sys

import pytest

from benchmarks.pipe import Pipe

ECHO = (
    "import os, sys; print(1, flush=True); [print(len(x), flush=True) if x > '1' else os._exit(3) for x in sys.stdin]"
)


def test_a_program_answers_until_it_ends_which_is_told_by_name_and_status():
    with Pipe("echo", [sys.executable, "-c", ECHO]) as pipe:
        assert pipe.ask("22") == 3
        for _ in range(2):  # as it ends, and where there is nobody to be asked
            with pytest.raises(RuntimeError, match="echo has ended with status 3; its messages stand above"):
                pipe.ask("0" * 100_000)


def test_a_program_that_does_not_start_is_told():
    with pytest.raises(RuntimeError, match="nothing has ended with status 5"):
        Pipe("nothing", [sys.executable, "-c", "raise SystemExit(5)"])
