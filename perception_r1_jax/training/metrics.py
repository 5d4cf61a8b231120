"""Metrics of a run: `metrics.jsonl`, TensorBoard, and one line a step for the reader.

`metrics.jsonl` has one line per step, appended and flushed as the step ends. A run that resumes repeats the steps
after its checkpoint, so it first fences them off: lines of steps that will be written again, and a last line that a
kill cut short, are removed. Each step is in the file at most once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from perception_r1_jax.errors import UserError


class MetricsWriter:
    """Writes to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`. One process of a run has it.

    Args:
        first_step: the step this run begins with; what an earlier run wrote from there on is fenced off.
    """

    def __init__(self, workdir: str | Path, *, first_step: int = 0):
        from tensorboardX import SummaryWriter  # brings torch in where that is installed, which takes seconds

        self._path = Path(workdir) / "metrics.jsonl"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fence(self._path, first_step)
        self._path.touch()
        self._board = SummaryWriter(str(self._path.parent / "tensorboard"), purge_step=first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a step. A number that is not finite is null in the file, where JSON has no word for it."""
        values = {name: float(value) for name, value in metrics.items()}
        append_lines(self._path, [{"step": step, **{name: finite(value) for name, value in values.items()}}])
        for name, value in values.items():
            if math.isfinite(value):
                self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes TensorBoard's file."""
        self._board.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows to a JSON-lines file. Raises `OSError` that names the file, as on a full disk."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def fence(path: str | Path, first_step: int) -> None:
    """Removes the lines of a JSON-lines file whose `step` is at or after `first_step`, and a cut last line.

    The file is replaced in one move, so a kill leaves the old or the new one.

    Raises:
        UserError: a line other than the last is no JSON object with a `step`; the message has its number.
    """
    path = Path(path)
    if not path.exists():
        return
    # Not splitlines: a response may hold other characters that it takes for line ends. What follows the last
    # newline is nothing, or a cut line.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    kept = [line + "\n" for number, line in enumerate(lines, 1) if _step(line, path, number) < first_step]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a JSON-lines file that `MetricsWriter` wrote."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n")[:-1]]


def format_line(step: int, steps: int, metrics: Mapping[str, float], names: Sequence[str]) -> str:
    """The named metrics of a step in one line: whole numbers in full, others to four significant digits.

    Names without a value are left out.

    >>> format_line(3, 20, {"loss": 0.0123456, "tokens": 53210.0}, ["loss", "reward", "tokens"])
    'step  3/20 | loss 0.01235 | tokens 53210'
    """
    parts = [f"{name} {_short(float(metrics[name]))}" for name in names if name in metrics]
    return " | ".join([f"step {step:>{len(str(steps))}}/{steps}", *parts])


def _short(value):
    return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"


def finite(value: float | None) -> float | None:
    """The value as JSON can hold it: None, which becomes null, where it is not finite."""
    return value if value is not None and math.isfinite(value) else None


def _step(line, path, number):
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}, line {number} is no JSON object with a 'step': {line[:80]!r}. Repair or remove the line."
        ) from error
