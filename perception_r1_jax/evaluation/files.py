"""The files of an evaluation, `eval/NAME-STEP.jsonl` with its items and `eval/NAME-STEP.json` with their numbers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from perception_r1_jax.evaluation.items import Item, read_items
from perception_r1_jax.evaluation.summary import Summary
from perception_r1_jax.json_files import write_json


class Evaluated(NamedTuple):
    """A finished evaluation: an item for each problem, and the numbers."""

    items: Sequence[Item]
    summary: Summary


def items_file(workdir: Path, name: str, step: int) -> Path:
    """Where the items of an evaluation stand."""
    return workdir / "eval" / f"{name}-{step}.jsonl"


def write_evaluated(path: Path, evaluated: Evaluated) -> None:
    """Writes both files; that of the items appears last and whole, so where it is the evaluation is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), dataclasses.asdict(evaluated.summary))
    temporary = path.with_suffix(".jsonl.tmp")
    lines = (json.dumps(dataclasses.asdict(item), ensure_ascii=False) + "\n" for item in evaluated.items)
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)


def read_evaluated(path: Path) -> Evaluated | None:
    """What `write_evaluated` wrote at this path, None where it has not (or not to its end)."""
    if not path.is_file():
        return None
    return Evaluated(read_items(path), Summary(**json.loads(path.with_suffix(".json").read_text())))


def remove_evaluated(workdir: Path, name: str, first_step: int) -> None:
    """Removes the evaluations of `first_step` and later ones: a run that goes on before them makes them anew."""
    for step in evaluated_steps(workdir, name):
        if step >= first_step:
            items_file(workdir, name, step).unlink()


def evaluated_steps(workdir: Path, name: str) -> list[int]:
    """After which steps there are evaluations, in order."""
    steps = (path.stem.removeprefix(f"{name}-") for path in (workdir / "eval").glob("*.jsonl"))
    return sorted(int(step) for step in steps if step.isdecimal())
