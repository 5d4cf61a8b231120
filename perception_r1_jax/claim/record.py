"""The record of a run: what the tables need of it, in one small JSON file that outlives the working directory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from perception_r1_jax.claim.outcomes import Outcomes
from perception_r1_jax.claim.plan import CHECKER_FUNCTIONS, PlannedRun, differing, flatten
from perception_r1_jax.claim.variants import VARIANTS
from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.checker import Row
from perception_r1_jax.evaluation.compare import result_fields
from perception_r1_jax.evaluation.files import Evaluated, items_file, read_evaluated
from perception_r1_jax.evaluation.grade import grade_again
from perception_r1_jax.evaluation.summary import summarise
from perception_r1_jax.json_files import read_json, write_json
from perception_r1_jax.report.agreement import compare_judge
from perception_r1_jax.report.checker import load_checker
from perception_r1_jax.report.curves import draw_curves
from perception_r1_jax.report.workdir import MissingData, Problems, Workdir

CURVES = {
    "Accuracy": {"reward/accuracy": "accuracy"},
    "Visual": {"reward/visual": "visual"},
    "Format": {"reward/format": "format"},
    "Repetition": {"reward/repetition": "repetition"},
    "Length": {"rollout/length_mean": "mean"},
    "Entropy": {"train/entropy": "entropy"},
}
"""Metrics whose means over the tenths of the run are kept, as `draw_curves` takes them."""


@dataclasses.dataclass(frozen=True)
class Tenth:
    """Judge and checker in a tenth of the run: mean shares of annotations found, and their correlation."""

    first_step: int
    last_step: int
    responses: int
    judge: float
    checker: float
    pearson: float | None


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of a run.

    Attributes:
        variant, seed: which run it is.
        changes: config fields that differ from the config file.
        result: `result.json`, with what the checker says now.
        problems: number of evaluated problems, `families`, their names, and `family`, each problem's place among these.
        before, after: outcomes of the problems before the first step and after the last.
        tenths: judge against checker; None in a run without a judge.
        curves: metric -> mean in each tenth of the run.
        run: `run.json`, with the whole config.
    """

    variant: str
    seed: int
    changes: Mapping[str, Any]
    result: Mapping[str, Any]
    problems: Mapping[str, Any]
    before: Outcomes
    after: Outcomes
    tenths: Sequence[Tenth] | None
    curves: Mapping[str, Sequence[float | None]]
    run: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.variant}-{self.seed}"

    @property
    def families(self) -> list[str]:
        """The family of each evaluated problem."""
        return [self.problems["families"][int(place)] for place in self.problems["family"].split(" ")]

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config by dotted names."""
        return flatten(self.run["config"])


def record_run(run: PlannedRun) -> Record:
    """Reads a finished run's working directory and writes its record.

    What the responses perceive is graded anew, so that all records say what the checker says now.

    Raises:
        UserError: the directory lacks an evaluation, its data have changed since, or its checker cannot be used.
    """
    workdir = Workdir.open(run.workdir)
    try:
        record = _read_workdir(run, workdir)
    except MissingData as error:
        raise UserError(f"{workdir.path} cannot be recorded. {error}") from error
    run.record.parent.mkdir(parents=True, exist_ok=True)
    write_json(run.record, dataclasses.asdict(record))
    return record


def _read_workdir(run: PlannedRun, workdir: Workdir) -> Record:
    checker, rows = load_checker(workdir, CHECKER_FUNCTIONS), _evaluated_rows(workdir)
    before, after = (_grade(workdir, step, rows, checker) for step in (0, run.config["steps"]))
    return Record(
        variant=run.variant,
        seed=run.seed,
        changes=run.changes,
        result=workdir.result | result_fields(before, after),
        problems=_describe([rows[item.problem_id].get("family", "all") for item in before.items]),
        before=_outcomes(before, rows, checker),
        after=_outcomes(after, rows, checker),
        tenths=_compare_judge(workdir, checker) if run.config["judge.path"] else None,
        curves=draw_curves(list(workdir.metrics), CURVES).means,
        run=workdir.record,
    )


def _evaluated_rows(workdir: Workdir) -> dict[str, Row]:
    problems = Problems.load(workdir, "evaluation")
    if problems.missing:
        raise MissingData(f"The problems cannot be read: {problems.missing}")
    return {name: problem.row for name, problem in problems.by_id.items()}


def _grade(workdir: Workdir, step: int, rows: Mapping[str, Row], checker: ModuleType) -> Evaluated:
    path = items_file(workdir.path, workdir.setting("evaluation.split"), step)
    evaluated = read_evaluated(path)
    if evaluated is None:
        raise UserError(f"{path} is missing. Move {workdir.path} away to run it anew.")
    items = [grade_again(item, rows[item.problem_id], checker) for item in evaluated.items]
    return Evaluated(items, summarise(items, evaluated.summary.seconds))


def _outcomes(evaluated: Evaluated, rows: Mapping[str, Row], checker: ModuleType) -> Outcomes:
    traits = [
        None if item.response is None else checker.traits(rows[item.problem_id], item.response)
        for item in evaluated.items
    ]
    return Outcomes.of(evaluated.items, traits)


def _describe(families: Sequence[str]) -> dict[str, Any]:
    """`Record.problems`."""
    names = sorted(set(families))
    return {"count": len(families), "families": names, "family": " ".join(str(names.index(name)) for name in families)}


def _compare_judge(workdir: Workdir, checker: ModuleType) -> list[Tenth]:
    parts = compare_judge(workdir.samples, Problems.load(workdir, "data"), checker).parts
    return [Tenth(part.first, part.last, len(part.items), *part.means, part.pearson) for part in parts]


def read_records(out: Path) -> list[Record]:
    """All records of a folder, in the order of `VARIANTS` and of seeds.

    Raises:
        UserError: there is none, one cannot be read, or they are not of the same problems, data and policy.
    """
    records = [_read_record(path) for path in sorted(out.glob("*.json"))]
    if not records:
        raise UserError(f"{out} holds no record of a run. Run scripts/claim.py without --table_only first.")
    check_alike(records)
    order = list(VARIANTS)
    return sorted(records, key=lambda record: (order.index(record.variant), record.seed))


def _read_record(path: Path) -> Record:
    content = read_json(path)
    try:
        before, after = (Outcomes(**content.pop(name)) for name in ("before", "after"))
        tenths = content.pop("tenths")
        tenths = None if tenths is None else [Tenth(**tenth) for tenth in tenths]
        record = Record(**content, before=before, after=after, tenths=tenths)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of a run, or one of another version ({error!r}). Move it out of the folder; "
            "--grade_again records finished runs anew."
        ) from error
    if record.variant not in VARIANTS:
        raise UserError(
            f"{path} is of the variant {record.variant!r}, none of {', '.join(VARIANTS)}. Move it out of the folder."
        )
    return record


def check_alike(records: Sequence[Record]) -> None:
    """Checks that records differ in what the variants and seeds set, and in nothing else.

    The hashes of the models say nothing here: they change with each conversion of the same weights. What the starting
    policy was shows in the outcomes before the first step.

    Raises:
        UserError: two are not of the same config otherwise, training data, or evaluated problems.
    """
    first = records[0]
    hashes = first.run["hashes"]
    free = {"seed"}.union(*(variant.fields for variant in VARIANTS.values()))
    for record in records:
        names = [name for name in differing(record.config, first.config) if name not in free]
        unlike = {
            f"config ({', '.join(names)})": bool(names),
            "training data": record.run["hashes"]["data"] != hashes["data"],
            "evaluated problems": record.run["hashes"]["evaluation"] != hashes["evaluation"],
        }
        if any(unlike.values()):
            raise UserError(
                f"{record.name} and {first.name} are not of the same {next(what for what in unlike if unlike[what])}, "
                "so they cannot be compared. Move the records of one set away."
            )
