"""Ours alone on a judge of Qwen2.5-7B's shape: in bfloat16, and in 8 bits."""

from __future__ import annotations

from pathlib import Path

from benchmarks import measure, shape
from benchmarks.judge_requests import ROWS, make_requests, ours
from benchmarks.large import large_engine, large_model
from benchmarks.measure import Case


def large(folder: Path, quick: bool, count: int) -> list[Case]:
    """Requests per second by the dtype of the weights; on a CPU nothing, or with `quick` of a tiny shape."""
    if (model := large_model(folder, quick, "Qwen2.5-7B-Instruct")) is None:
        return []
    return [_time(model, int8, count, rounds=1 if quick else 3) for int8 in (False, True)]


def _time(model: shape.Model, int8: bool, count: int, rounds: int) -> Case:
    setup = make_requests(model, large_engine(model, weights_int8=int8), count)
    name = f"large_{'int8' if int8 else 'bfloat16'}"
    seconds = measure.interleave({name: ours(setup)}, rounds, warm={name: ours(setup.first(ROWS))})
    return measure.throughput(name, "requests/s", count, seconds[name])
