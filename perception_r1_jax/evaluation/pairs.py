"""Verdicts on the same problems before and after, paired by problem."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.mcnemar import difference_interval, mcnemar_exact
from perception_r1_jax.rewards.tally import name_first

Verdicts = Mapping[str, float | None]
"""problem id -> 1 (right) or 0 (wrong), or None where there is no verdict."""


@dataclasses.dataclass(frozen=True)
class Pairs:
    """How many problems have which verdicts before and after.

    Attributes:
        both: right before and after.
        gained: wrong before, right after.
        lost: right before, wrong after.
        neither: wrong before and after.
        without_value: problems that lack a verdict before or after, which are in none of the four.
    """

    both: int
    gained: int
    lost: int
    neither: int
    without_value: int = 0

    @property
    def count(self) -> int:
        """Problems with both verdicts. The rates below need at least one."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def before(self) -> float:
        """Share of right verdicts before."""
        return (self.both + self.lost) / self.count

    @property
    def after(self) -> float:
        """Share of right verdicts after."""
        return (self.both + self.gained) / self.count

    @property
    def difference(self) -> float:
        """`after` less `before`."""
        return (self.gained - self.lost) / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the difference; see `difference_interval`."""
        return difference_interval(self.gained, self.lost, self.count)

    @property
    def p(self) -> float:
        """Of McNemar's exact two-sided test."""
        return mcnemar_exact(self.lost, self.gained)


def pair(before: Verdicts, after: Verdicts) -> Pairs:
    """Counts the problems by their verdicts before and after.

    Raises:
        UserError: a problem of one side is not on the other; the message names the first few.
    """
    unpaired = {"before": before.keys() - after.keys(), "after": after.keys() - before.keys()}
    if any(unpaired.values()):
        named = [f"{len(ids)} only {side} ({name_first(sorted(ids))})" for side, ids in unpaired.items() if ids]
        raise UserError(f"before and after are not of the same problems: {'; '.join(named)}.")
    verdicts = [(before[problem], after[problem]) for problem in before]
    known = [(bool(then), bool(now)) for then, now in verdicts if then is not None and now is not None]
    return Pairs(
        both=known.count((True, True)),
        gained=known.count((False, True)),
        lost=known.count((True, False)),
        neither=known.count((False, False)),
        without_value=len(verdicts) - len(known),
    )


def read_verdicts(path: str | Path, field: str) -> dict[str, float | None]:
    """One field of a result file: JSON lines with a `problem_id`, the field true, false, 1, 0 or null.

    Raises:
        UserError: a line that is no such object, or a problem that stands there twice; the message has its number.
        OSError: no such file.
    """
    verdicts: dict[str, float | None] = {}
    with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                problem, verdict = _read_line(line, field, f"{path}, line {number}")
                if problem in verdicts:
                    raise UserError(f"{path}, line {number}: the problem {problem!r} stands there a second time.")
                verdicts[problem] = verdict
    return verdicts


def _read_line(line: str, field: str, place: str) -> tuple[str, float | None]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{place} is not JSON: {line.strip():.80}") from error
    if not isinstance(row, dict):
        raise UserError(f"{place} is a {type(row).__name__}, not an object with 'problem_id' and {field!r}.")
    for name in ("problem_id", field):
        if name not in row:
            raise UserError(f"{place} has no field {name!r}; it has {', '.join(row) or 'none'}.")
    if row[field] is not None and row[field] not in (0, 1):
        raise UserError(f"{place}: {field!r} is {row[field]!r:.80}; it must be true, false, 1, 0 or null.")
    return str(row["problem_id"]), None if row[field] is None else float(row[field])
