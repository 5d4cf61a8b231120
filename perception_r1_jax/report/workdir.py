"""The files of a run, as far as they are there, and the problems that they speak of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from perception_r1_jax.data import load_problems
from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json
from perception_r1_jax.records import Problem
from perception_r1_jax.training.run_record import RECORD, hash_problems


class MissingData(Exception):
    """What a section of the report is made from is not there; the message says what, and stands in its place."""


class JsonLines:
    """A file of JSON objects, one a line, read anew each time it is gone through.

    Attributes:
        path: of the file; one that does not exist has no lines.
        required: fields that a line must have.
        broken: numbers of the lines that the last pass left out, a last one without a line end among them: what a
            kill leaves behind, as `training.metrics.fence` has it.
    """

    def __init__(self, path: Path, required: Sequence[str]) -> None:
        self.path, self.required, self.broken = path, required, []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.broken = []
        if not self.path.is_file():
            return
        # A line ends with "\n" alone: a response may hold other characters that Python takes for line ends.
        with self.path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, 1):
                row = _parse(line) if line.endswith("\n") else None
                if row is not None and all(name in row for name in self.required):
                    yield row
                else:
                    self.broken.append(number)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's working directory.

    Attributes:
        path: the directory.
        record: `run.json`.
        result: `result.json`; empty where the run has not ended.
        metrics: `metrics.jsonl`, a line per step.
        samples: `samples.jsonl`, a line per response.
    """

    path: Path
    record: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: JsonLines
    samples: JsonLines

    @classmethod
    def open(cls, path: Path) -> Workdir:
        """Reads what is small and finds the rest.

        Raises:
            UserError: there is no `run.json`, so this is no working directory, or it cannot be read.
        """
        record = read_json(path / RECORD)
        if not isinstance(record.get("config"), dict):
            raise UserError(f"{path} has no run.json with a config: give the working directory of a run.")
        return cls(
            path=path,
            record=record,
            result=read_json(path / "result.json"),
            metrics=JsonLines(path / "metrics.jsonl", ["step"]),
            samples=JsonLines(path / "samples.jsonl", ["step", "problem_id", "sample", "response"]),
        )

    def setting(self, field: str) -> Any:
        """A field of the config by its dotted name; None where the run knew no such field."""
        value: Any = self.record["config"]
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def broken(self) -> dict[str, list[int]]:
        """File -> numbers of the lines that could not be read, of the files gone through so far."""
        return {file.path.name: file.broken for file in (self.metrics, self.samples) if file.broken}


@dataclasses.dataclass(frozen=True)
class Problems:
    """The problems of a split by their ids; none, and the reason, where the run's data are there no more."""

    by_id: Mapping[str, Problem]
    missing: str = ""

    @classmethod
    def load(cls, workdir: Workdir, section: str) -> Problems:
        """Reads what the run did, "data" or "evaluation": the split that this section of its config names."""
        path, split = workdir.setting("data.path"), workdir.setting(f"{section}.split")
        if path is None or not split:
            return cls({}, "run.json names no data")
        try:
            problems, _ = load_problems(path, split)
        except (UserError, OSError) as error:
            return cls({}, str(error))
        problems = problems[: workdir.setting(f"{section}.problems") or None]
        if hash_problems(problems) != workdir.record.get("hashes", {}).get(section):
            return cls({}, f"the data at {path} are not those of the run")
        return cls({problem.problem_id: problem for problem in problems})

    def without_annotations(self) -> Problems:
        """As a judge knows them that sees the pictures: its verdict is on none of the annotations."""
        return Problems(
            {name: dataclasses.replace(problem, annotations=()) for name, problem in self.by_id.items()}, self.missing
        )
