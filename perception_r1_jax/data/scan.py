"""The scan of a data source: each row becomes a problem, or is left out, counted and named."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from perception_r1_jax.data.annotations import Annotations
from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.data.pictures import PictureError, open_header
from perception_r1_jax.records import IMAGE_MARKER, ImageSource, Problem

NAMES_SHOWN = 5


@dataclasses.dataclass
class RowReport:
    """What became of the rows of a source.

    Attributes:
        source: the split and where it was read from.
        rows: rows read, bad ones included.
        kept: rows that became problems, or conversations.
        skipped: reason -> one line for each row left out for it, naming the row.
    """

    source: str
    rows: int = 0
    kept: int = 0
    skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def skip(self, dropped: DroppedProblem) -> None:
        """Counts and names a row that is left out."""
        self.skipped.setdefault(dropped.reason, []).append(str(dropped))

    def summary(self, what: str = "conversations") -> str:
        """A few lines for people: every count, and the first names of whatever was left out."""
        lines = [f"{self.source}: {self.rows} rows read, {self.kept} {what} kept"]
        return "\n".join(lines + [f"  skipped, {reason}: {_some(rows)}" for reason, rows in self.skipped.items()])


@dataclasses.dataclass
class ScanReport(RowReport):
    """What a scan of problems found.

    Attributes:
        annotations: annotations of the kept problems.
        without_annotations: kept problems that have none; their visual reward has no value.
        literals: logic-form literals read, of all rows (Geometry3K only; likewise the next two).
        literals_merged: literals told in the sentence of another.
        literals_left_out: reason -> "row: literal" of each without a sentence.
    """

    annotations: int = 0
    without_annotations: int = 0
    literals: int = 0
    literals_merged: int = 0
    literals_left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def add_literals(self, problem_id: str, rendered: Annotations) -> None:
        """Counts what became of one diagram's literals."""
        self.literals += len(rendered.sentences) + len(rendered.merged) + len(rendered.left_out)
        self.literals_merged += len(rendered.merged)
        for literal, reason in rendered.left_out:
            self.literals_left_out.setdefault(reason, []).append(f"{problem_id}: {literal!r}")

    def summary(self, what: str = "problems") -> str:
        """As of any rows, then annotations and literals."""
        lines = [super().summary(what)]
        lines.append(f"  {self.annotations} annotations; {self.without_annotations} problems have none")
        if self.literals:
            left_out = sum(map(len, self.literals_left_out.values()))
            sentences = self.literals - self.literals_merged - left_out
            lines.append(
                f"  {self.literals} literals: {sentences} sentences, {self.literals_merged} merged into these, "
                f"{left_out} left out"
            )
        lines += [f"  literals left out, {reason}: {len(rows)}" for reason, rows in self.literals_left_out.items()]
        return "\n".join(lines)


def scan(rows: Iterable[Problem | DroppedProblem], report: ScanReport) -> list[Problem]:
    """The problems fit for use, in order; `report` takes the count of all rows and the names of the others."""
    problems: dict[str, Problem] = {}
    for row in rows:
        report.rows += 1
        try:
            problem = _checked(row, problems)
        except DroppedProblem as dropped:
            report.skip(dropped)
            continue
        problems[problem.problem_id] = problem
        report.annotations += len(problem.annotations)
        report.without_annotations += not problem.annotations
    report.kept = len(problems)
    return list(problems.values())


def _checked(row: Problem | DroppedProblem, seen: dict[str, Problem]) -> Problem:
    """The row as a problem. Raises `DroppedProblem` for whatever would spoil a step later."""
    if isinstance(row, DroppedProblem):
        raise row
    if row.problem_id in seen:
        raise DroppedProblem(row.problem_id, "duplicate id")
    check_unicode(row.problem_id, (row.problem_id, row.question, row.answer, *row.annotations))
    if not row.answer.strip():
        raise DroppedProblem(row.problem_id, "empty answer")
    markers = row.question.count(IMAGE_MARKER)
    if markers and markers != len(row.images):
        detail = f"{len(row.images)} pictures for {markers} {IMAGE_MARKER} markers"
        raise DroppedProblem(row.problem_id, "pictures and markers differ in number", detail)
    if not row.question.replace(IMAGE_MARKER, "").strip():
        raise DroppedProblem(row.problem_id, "empty question")
    check_headers(row.problem_id, row.images)
    return row


def check_headers(name: str, images: Iterable[ImageSource]) -> None:
    """Reads each picture's kind and size, no pixels: damage further on shows when the picture is decoded.

    Raises:
        DroppedProblem: of this name, for a picture that cannot be read.
    """
    for image in images:
        try:
            with open_header(image):
                pass
        except PictureError as error:
            raise DroppedProblem(name, error.reason, error.detail) from error


def check_unicode(name: str, texts: Iterable[str]) -> None:
    """Raises `DroppedProblem` for lone surrogates, which JSON can hold: they can be neither tokenized nor printed."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DroppedProblem(name, "text is not Unicode", str(error)) from error


def _some(names: list[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return f"{len(names)} ({'; '.join(names[:NAMES_SHOWN])}{f'; and {more} more' if more > 0 else ''})"
