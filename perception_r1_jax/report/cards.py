"""Samples to look at, chosen by rule: the same problem before and after, and a group's best and worst response."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from perception_r1_jax.evaluation.checker import ABSENT, MISREAD, RIGHT
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.records import IMAGE_MARKER
from perception_r1_jax.report.before_after import BeforeAfter
from perception_r1_jax.report.pictures import Picture, embed
from perception_r1_jax.report.workdir import JsonLines, MissingData, Problems, Workdir
from perception_r1_jax.rewards import format_reward, repetition_penalty

OUTCOMES = {
    "gained": (0, 1),
    "lost": (1, 0),
    "wrong both times": (0, 0),
    "right both times": (1, 1),
}
"""What became of a problem -> its verdicts before and after."""

EACH = 2
"""Cards of each outcome."""

Line = Mapping[str, Any]
"""A line of samples.jsonl."""

TERMS = ("format", "accuracy", "visual", "repetition", "custom", "overlong")


@dataclasses.dataclass(frozen=True)
class Mark:
    """What is said of an annotation in a response: a sign, a word, and how it looks: good, bad or neutral."""

    sign: str
    word: str
    tone: str


STATED = {
    RIGHT: Mark("✓", "stated", "good"),
    MISREAD: Mark("✗", "misread", "bad"),
    ABSENT: Mark("–", "left\u00a0out", "none"),
}
JUDGED = {True: Mark("✓", "yes", "good"), False: Mark("–", "no", "none")}
PARTED = {True: Mark("✓", "yes, checker:\u00a0no", "bad"), False: Mark("–", "no, checker:\u00a0yes", "bad")}
"""A judge's verdict that the checker does not share."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A problem as it was put.

    Attributes:
        problem_id: of the problem.
        question, answer, annotations: as the data set has them, without image markers.
        pictures: as the page shows them.
        missing: why there is nothing but the id.
    """

    problem_id: str
    question: str = ""
    answer: str = ""
    annotations: tuple[str, ...] = ()
    pictures: Sequence[Picture] = ()
    missing: str = ""


@dataclasses.dataclass(frozen=True)
class Answered:
    """A response.

    Attributes:
        name: what it is beside the other one of its card.
        source: the item of an evaluation, or the line of samples.jsonl, that holds it.
        marks: of each annotation; empty where nobody looked.
        terms: reward term -> its value, None where it has none.
    """

    name: str
    source: Item | Mapping[str, Any]
    marks: Sequence[Mark]
    terms: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Card:
    """A task and the responses to it, two or one; `probe` is the question for a single fact, "" without one."""

    title: str
    task: Task
    responses: Sequence[Answered]
    probe: str = ""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Cards of two evaluations: the measure that sorts them; outcome -> number of problems, cards of the first ones."""

    measure: str
    groups: Mapping[str, tuple[int, Sequence[Card]]]


def evaluation_cards(
    workdir: Workdir, evaluations: BeforeAfter, problems: Problems, checker: ModuleType | None
) -> Evaluated:
    """The first problems of each outcome; of perception, or of accuracy in a run without a checker."""
    measure = "perception" if any(item.perception is not None for item in evaluations.before) else "accuracy"
    groups = {}
    for name, outcome in OUTCOMES.items():
        chosen = [pair for pair in evaluations.items if tuple(getattr(item, measure) for item in pair) == outcome]
        cards = [_evaluation_card(workdir, pair, problems, checker) for pair in chosen[:EACH]]
        groups[name] = (len(chosen), cards)
    return Evaluated(measure, groups)


def _evaluation_card(workdir: Workdir, pair: tuple[Item, Item], problems: Problems, checker: ModuleType | None) -> Card:
    task = make_task(pair[0].problem_id, problems)
    answered = [
        Answered(name, item, [STATED[state] for state in item.fact_states or ()], _evaluated_terms(workdir, item))
        for name, item in zip(("Before", "After"), pair)
    ]
    problem = problems.by_id.get(task.problem_id)
    return Card(task.problem_id, task, answered, checker.probe(problem.row)[0] if checker and problem else "")


def _evaluated_terms(workdir: Workdir, item: Item) -> dict[str, float | None]:
    """The terms that need no judge: none is asked in an evaluation."""
    size, most = (workdir.setting(f"reward.{name}") for name in ("ngram_size", "repetition_max_penalty"))
    return {
        "format": format_reward(item.response),
        "accuracy": item.accuracy,
        "repetition": repetition_penalty(item.response, size, most),
    }


def training_cards(samples: JsonLines, problems: Problems, checker: ModuleType | None) -> list[Card]:
    """Of the first, the middle and the last step: the best and the worst response of the first group with a signal.

    Raises:
        MissingData: there are no samples.
    """
    steps = sorted({line["step"] for line in samples})
    if not steps:
        raise MissingData("samples.jsonl is not there, or has no lines.")
    chosen = dict.fromkeys((steps[0], steps[len(steps) // 2], steps[-1]))
    lines: dict[int, dict[str, list[Line]]] = {step: {} for step in chosen}
    for line in samples:
        if line["step"] in lines:
            lines[line["step"]].setdefault(line["problem_id"], []).append(line)
    return [_training_card(step, _first_with_signal(groups), problems, checker) for step, groups in lines.items()]


def _first_with_signal(groups: Mapping[str, Sequence[Line]]) -> Sequence[Line]:
    """The first group with an advantage that is not 0; the first of all where none has."""
    with_signal = (group for group in groups.values() if any(line.get("advantage") for line in group))
    return next(with_signal, next(iter(groups.values())))


def _training_card(step: int, group: Sequence[Line], problems: Problems, checker: ModuleType | None) -> Card:
    valued = [line for line in group if line.get("total") is not None] or [*group]
    ordered = sorted(valued, key=lambda line: -(line.get("total") or 0.0))
    ends = {"Best": ordered[0], "Worst": ordered[-1]}
    return _judged_card(f"step {step}", ends, problems, checker)


def parting_card(line: Line, problems: Problems, checker: ModuleType) -> Card:
    """A response about which judge and checker say different things."""
    return _judged_card(f"step {line['step']}", {f"Sample {line['sample']}": line}, problems, checker)


def _judged_card(when: str, lines: Mapping[str, Line], problems: Problems, checker: ModuleType | None) -> Card:
    task = make_task(next(iter(lines.values()))["problem_id"], problems)
    responses = [Answered(name, line, judge_marks(line, task, checker), _terms(line)) for name, line in lines.items()]
    return Card(f"{task.problem_id}, {when}", task, responses)


def judge_marks(line: Line, task: Task, checker: ModuleType | None) -> list[Mark]:
    """The judge's verdict on each annotation, with the checker's where it is another."""
    verdicts = [verdict > 0.5 for verdict in line.get("verdicts") or ()]
    if checker is None or len(verdicts) != len(task.annotations):
        return [JUDGED[verdict] for verdict in verdicts]
    truth = [checker.reflected(annotation, line["response"]) for annotation in task.annotations]
    return [(JUDGED if verdict == true else PARTED)[verdict] for verdict, true in zip(verdicts, truth)]


def _terms(line: Line) -> dict[str, Any]:
    return {name: line[name] for name in TERMS if name in line}


def make_task(problem_id: str, problems: Problems) -> Task:
    """The problem with its pictures, or the reason why it is not there."""
    problem = problems.by_id.get(problem_id)
    if problem is None:
        return Task(problem_id, missing=problems.missing or "the data hold no such problem")
    return Task(
        problem_id,
        question=problem.question.replace(IMAGE_MARKER, "").strip(),
        answer=problem.answer,
        annotations=problem.annotations,
        pictures=embed(problem.images),
    )
