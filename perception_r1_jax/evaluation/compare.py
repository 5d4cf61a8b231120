"""Two evaluations of the same problems: the fields of `result.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from perception_r1_jax.evaluation.files import Evaluated
from perception_r1_jax.evaluation.pairs import Pairs
from perception_r1_jax.evaluation.summary import FIELDS, fact_changes, pair_items

RATES = (*FIELDS, "precision")


def result_fields(before: Evaluated | None, after: Evaluated | None) -> dict[str, Any]:
    """What two evaluations give to a run's `result.json`; what they have no data for is None.

    - `NAME_before` and `NAME_after` for accuracy, perception, probe and precision: the rates;
    - `change_NAME` for the first three: value, low and high, the difference of the rates with its 95% interval;
    - `mcnemar_NAME` for the same: gained, lost and p;
    - `facts`: what `fact_changes` gives;
    - `evaluation_before` and `evaluation_after`: the counts and seconds of each.

    Change and test are over the problems that have a verdict on both sides.

    Raises:
        UserError: the two are not of the same problems.
    """
    sides = {"before": before, "after": after}
    fields = {
        f"{name}_{side}": getattr(evaluated.summary, name) if evaluated else None
        for name in RATES
        for side, evaluated in sides.items()
    }
    for name in FIELDS:
        pairs = pair_items(before.items, after.items, name) if before and after else Pairs(0, 0, 0, 0)
        fields |= _pair_fields(name, pairs)
    fields["facts"] = fact_changes(before.items, after.items) if before and after else None
    return fields | {f"evaluation_{side}": _counts(evaluated) for side, evaluated in sides.items()}


def _pair_fields(name: str, pairs: Pairs) -> dict[str, Any]:
    if pairs.count == 0:
        return {f"change_{name}": None, f"mcnemar_{name}": None}
    low, high = pairs.interval
    return {
        f"change_{name}": {"value": pairs.difference, "low": low, "high": high},
        f"mcnemar_{name}": {"gained": pairs.gained, "lost": pairs.lost, "p": pairs.p},
    }


def _counts(evaluated: Evaluated | None) -> dict[str, Any] | None:
    if evaluated is None:
        return None
    return {name: value for name, value in dataclasses.asdict(evaluated.summary).items() if name not in RATES}
