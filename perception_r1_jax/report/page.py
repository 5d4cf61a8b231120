"""The page: every section made from the files that are there, written by one template."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from perception_r1_jax.report import agreement, cards, meaning, plots, seeing, wording
from perception_r1_jax.report.before_after import pair_up
from perception_r1_jax.report.checker import load_checker
from perception_r1_jax.report.curves import JUDGE, REWARDS, TRAINING, draw_agreement, draw_curves
from perception_r1_jax.report.failures import count_failures
from perception_r1_jax.report.outcome import Outcome, make_outcome
from perception_r1_jax.report.run_facts import collect_facts
from perception_r1_jax.report.workdir import MissingData, Problems, Workdir


def make_report(path: Path) -> str:
    """The report of the run in a working directory, as one HTML page that needs nothing else.

    The same files make the same page. What is missing is said in the place where it would stand.

    Raises:
        UserError: this is no working directory, or its `run.json` or `result.json` cannot be read.
    """
    workdir = Workdir.open(path)
    return _template().render(title=path.resolve().name, **_sections(workdir), broken=workdir.broken())


SAW = "The judge looked at the pictures and gave each response one verdict; of annotations it was not asked."


@dataclasses.dataclass(frozen=True)
class Section:
    """What a section shows, or why it shows nothing."""

    content: Any = None
    missing: str = ""


def attempt(make: Callable[..., Any], *inputs: Any) -> Section:
    """Makes a section; one that it is made from and that is missing stands for it."""
    for given in inputs:
        if isinstance(given, Section) and given.missing:
            return given
    try:
        return Section(make(*(given.content if isinstance(given, Section) else given for given in inputs)))
    except MissingData as error:
        return Section(missing=str(error))


def _sections(workdir: Workdir) -> dict[str, Any]:
    lines = list(workdir.metrics)
    setting = workdir.setting
    train, held_out = (Problems.load(workdir, section) for section in ("data", "evaluation"))
    checker, evaluations = attempt(load_checker, workdir), attempt(pair_up, workdir)
    if setting("judge.sees"):
        compared, train = Section(missing=SAW), train.without_annotations()
    else:
        compared = attempt(agreement.compare_judge, workdir.samples, train, checker)
    return {
        "setting": setting,
        "outcome": (outcome := attempt(make_outcome, evaluations)),
        "reach": attempt(_reach, outcome).content,
        "seeing": attempt(seeing.follow, evaluations),
        "rewards": attempt(draw_curves, lines, REWARDS),
        "training": attempt(draw_curves, lines, TRAINING),
        "judging": attempt(draw_curves, lines, JUDGE),
        "failures": attempt(count_failures, lines),
        "agreement": compared,
        "agreement_charts": attempt(draw_agreement, compared),
        "partings": attempt(_partings, compared, train, checker),
        "evaluated": attempt(cards.evaluation_cards, workdir, evaluations, held_out, checker.content),
        "trained": attempt(cards.training_cards, workdir.samples, train, checker.content),
        "facts": collect_facts(workdir, lines),
    }


def _reach(outcome: Outcome) -> float:
    """What both ends of the intervals' common axis are: the next 5 points beyond the widest of them."""
    changes = [*outcome.changes.values(), *filter(None, [outcome.precision])]
    return math.ceil(20 * max(abs(bound) for change in changes for bound in change.interval)) / 20


def _partings(compared: agreement.Agreement, problems: Problems, checker: Any) -> list[tuple[agreement.Part, list]]:
    """The tenths where judge and checker part, each with the cards of its examples."""
    return [
        (part, [cards.parting_card(item.line, problems, checker) for item in part.examples])
        for part in compared.parts
        if part.parted
    ]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perception_r1_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (wording.percent, wording.points, wording.interval, wording.p_value, wording.number, wording.counted)
    environment.filters |= {word.__name__: word for word in (*words, wording.duration, wording.setting_text)}
    environment.globals |= {"meaning": meaning, "cards": cards, "plots": plots, "threshold": agreement.THRESHOLD}
    return environment.get_template("report.html")
