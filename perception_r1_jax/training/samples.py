"""`samples.jsonl`: one line for each response of each step, with its rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception_r1_jax.records import GroupAdvantages, Rollout, Scores
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.metrics import append_lines, finite


def append_samples(path: Path, step: int, groups: Groups, advantages: GroupAdvantages) -> None:
    """Appends a step's responses. A term without a value is null, as is the total of a response that was left out."""
    rows = (
        {"step": step, "problem_id": problem.problem_id, "sample": sample, **fields}
        for row, problem in enumerate(groups.problems)
        for sample, fields in enumerate(_fields(row, groups.rollout, groups.scores, advantages))
    )
    append_lines(path, rows)


def _fields(row: int, rollout: Rollout, scores: Scores, advantages: GroupAdvantages) -> Iterator[dict[str, Any]]:
    for sample in range(rollout.tokens.shape[1]):
        at = (row, sample)
        yield {
            "response": rollout.texts[row][sample],
            "tokens": int(rollout.mask[at].sum()),
            "finish_reason": rollout.finish_reasons[row][sample],
            **{name: _number(values[at]) for name, values in scores.terms.items()},
            "verdicts": scores.verdicts[row][sample],
            "probabilities": _rounded(scores.probabilities[row][sample]),
            "judge_status": scores.judge_status[row][sample],
            "total": _number(scores.total[at]) if scores.valid[at] else None,
            "advantage": _number(advantages.advantages[at]),
        }


def _rounded(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [round(value, 6) for value in values]


def _number(value: np.floating) -> float | None:
    return finite(round(float(value), 6))
