"""Numbers over the steps of a run: columns of the metrics, running means, tenths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

PARTS = 10


def column(lines: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """float64 [steps], a metric at each step; NaN where it is absent or null."""
    return np.array([np.nan if line.get(name) is None else line[name] for line in lines], np.float64)


def window_of(steps: int) -> int:
    """Steps that a running mean takes in: an odd number near a tenth of the run, at least 5; 1 in a short run."""
    return 1 if steps < 2 * PARTS else max(5, steps // PARTS | 1)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """The running mean over `window` steps around each; fewer at both ends. NaN is left out of the means."""
    known = ~np.isnan(values)
    sums, counts = (np.convolve(x, np.ones(window)) for x in (np.where(known, values, 0.0), known.astype(np.float64)))
    middle = slice(window // 2, window // 2 + len(values))
    return np.where(counts[middle] > 0, sums[middle] / np.maximum(counts[middle], 1), np.nan)


def tenths(steps: Iterable[int]) -> list[tuple[int, int]]:
    """First and last step of each tenth of a run; fewer parts where there are fewer steps."""
    parts = np.array_split(np.unique(np.fromiter(steps, np.int64)), PARTS)
    return [(int(part[0]), int(part[-1])) for part in parts if part.size]


def mean(values: np.ndarray) -> float | None:
    """The mean of the values that there are; None without any."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None
