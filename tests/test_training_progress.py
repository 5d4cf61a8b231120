"""The progress bar of a run, on a terminal with a clock of its own."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from perception_r1_jax.training.progress import progress_bar


@pytest.mark.parametrize(("seconds", "left"), [(1.0, "0:00:02"), (200.0, "0:06:40")])
def test_two_steps_give_an_estimate_however_long_they_take(seconds, left):
    clock = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True, width=100, get_time=lambda: clock[0])
    with progress_bar(3, 7, console, {"loss": "train/loss"}) as advance:
        for _ in range(2):
            clock[0] += seconds
            advance({"train/loss": 0.5})
    shown = re.sub(r"\x1b\[[?\d;]*\w", "", console.file.getvalue()).split("training")[-1]
    assert f"5/7 {left} left {left}" in shown  # as long as it took until now
