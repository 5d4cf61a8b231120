"""Geometry3K's JSON lines: the real ones, and every kind of bad row."""

from __future__ import annotations

import json

import pytest

from perception_r1_jax.data import DataError, load_problems
from perception_r1_jax.data.geometry_world import make_problem


@pytest.mark.parametrize(("split", "count"), [("train", 200), ("val", 60), ("test", 60)])
def test_real_split(shared_data, split, count):
    problems, report = load_problems(shared_data / "geometry3k", split)
    assert (len(problems), report.rows, report.kept, report.skipped) == (count, count, count, {})
    assert report.annotations == sum(len(problem.annotations) for problem in problems)
    assert len({problem.problem_id for problem in problems}) == count


def test_real_problem_as_people_see_it(shared_data):
    problems, report = load_problems(shared_data / "geometry3k", "train")
    problem = {problem.problem_id: problem for problem in problems}["geometry3k/train/15"]
    assert problem.question == "<image>Find y."
    assert problem.answer == r"5 \sqrt{3}"
    assert problem.images == (shared_data / "geometry3k" / "images" / "train" / "15.png",)
    assert problem.row["choices"][2] == r"5 \sqrt { 3 }"
    assert "1868 literals: 1352 sentences, 458 merged into these, 58 left out" in report.summary()


def test_answer_is_rounded_where_the_question_asks(shared_data):
    answers = {p.row["id"]: p.answer for p in load_problems(shared_data / "geometry3k", "train")[0]}
    assert answers[871] == "259.8"  # rounded by problem_text
    assert answers[8] == "8.94"  # only annotat_text says "nearest hundredth": the right choice
    assert answers[67] == r"\frac{27}{5}"  # exact


def _row(**changes) -> dict:
    row = {
        "id": 1,
        "problem_text": "Find x.",
        "answer_latex": "5",
        "image": "1.png",
        "diagram_logic_form": ["Equals(LengthOf(Line(A, B)), x)", ""],
    }
    return row | changes


@pytest.fixture
def write(tmp_path):
    """Writes lines (rows or text) as train.jsonl beside one good picture, one cut short and one that is text."""
    picture = make_problem(0).problem().images[0]
    (tmp_path / "1.png").write_bytes(picture)
    (tmp_path / "text.png").write_text("not a picture")

    def write_lines(*lines):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (tmp_path / "train.jsonl").write_text("\n".join(texts) + "\n")
        return tmp_path

    return write_lines


@pytest.mark.parametrize(
    ("line", "reason", "named"),
    [
        (_row(id=2, answer_latex=" "), "empty answer", "geometry3k/train/2"),
        (_row(id=2, answer_latex=None), "empty answer", "geometry3k/train/2"),
        (_row(id=2, problem_text=""), "empty question", "geometry3k/train/2"),
        (_row(id=2, image="none.png"), "absent image", "none.png"),
        (_row(id=2, image="text.png"), "corrupt image", "geometry3k/train/2"),
        (_row(id=1), "duplicate id", "geometry3k/train/1"),
        (_row(id=2, problem_text="<image> <image>"), "pictures and markers differ in number", "1 pictures for 3"),
        (_row(id=2, image=None), "mistyped fields", "train.jsonl:2: mistyped fields (image is None)"),
        ({"id": 3}, "missing fields", "problem_text, answer_latex, image, diagram_logic_form; found id"),
        (_row(id=2, annotat_text=5), "mistyped fields", "annotat_text is 5"),
        (_row(id=2, choices="5", answer_value=5), "mistyped fields", "answer_value is 5, choices is '5'"),
        (_row(id=2, answer_rounded=5.5), "mistyped fields", "answer_rounded is 5.5"),
        (_row(id=2, problem_text="Round to the nearest tenth.", choices=["1"]), "no rounded answer", "train/2"),
        (_row(id=2, problem_text="Round to the nearest tenth.", answer_value="1"), "no rounded answer", "train/2"),
        (_row(id=2, image="."), "image is a folder", "geometry3k/train/2"),
        (_row(id=2, image="x" * 9999), "corrupt image", "geometry3k/train/2"),
        (_row(id=2, image="1.png/x"), "absent image", "geometry3k/train/2"),
        (_row(id="\ud800"), "text is not Unicode", r"geometry3k/train/\ud800"),
        ("[" * 9999, "invalid JSON", "train.jsonl:2"),
        ('{"id": 4, ', "invalid JSON", "train.jsonl:2"),
        ("[1, 2]", "not a JSON object", "train.jsonl:2"),
    ],
)
def test_bad_row_is_skipped_counted_and_named(write, line, reason, named):
    problems, report = load_problems(write(_row(), line))
    assert [problem.problem_id for problem in problems] == ["geometry3k/train/1"]
    assert (report.rows, report.kept, list(report.skipped)) == (2, 1, [reason])
    assert named in report.skipped[reason][0]
    assert f"skipped, {reason}: 1 (" in report.summary()
    assert named in report.summary()


ODD_VALUES = (
    None,
    5,
    2.5,
    True,
    [],
    [1],
    ["x", None],
    {},
    {"a": 1},
    "",
    "x",
    "\ud800",
    "a\0b",
    "y" * 5000,
    "A(" * 3000,
)


def test_any_field_of_a_real_row_may_hold_anything(shared_data, tmp_path):
    """Every row is kept or skipped by name, and the report can be printed."""
    (tmp_path / "images").symlink_to(shared_data / "geometry3k" / "images")
    rows = [json.loads(line) for line in (shared_data / "geometry3k" / "train.jsonl").open()]
    multiple_choice = next(row for row in rows if row["choices"] and "nearest" in (row["annotat_text"] or ""))
    odd = [multiple_choice | {field: value} for field in multiple_choice for value in ODD_VALUES]
    odd += [{name: value for name, value in multiple_choice.items() if name != field} for field in multiple_choice]
    odd = [row | ({"id": number} if row.get("id") == multiple_choice["id"] else {}) for number, row in enumerate(odd)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, odd)))
    problems, report = load_problems(tmp_path)
    skipped = {reason: len(lines) for reason, lines in report.skipped.items()}
    assert report.rows == len(odd) == len(problems) + sum(skipped.values())
    assert {"mistyped fields", "missing fields", "no rounded answer", "text is not Unicode"} <= set(skipped)
    assert all(isinstance(problem.answer, str) and problem.answer.strip() for problem in problems)
    report.summary().encode("utf-8")


def test_left_out_literals_are_named(write):
    _, report = load_problems(write(_row()))
    assert report.literals_left_out == {"empty": ["geometry3k/train/1: ''"]}


def test_no_usable_row_is_an_error_with_the_report(write):
    with pytest.raises(DataError, match=r"(?s)No usable problem.*skipped, empty answer: 1"):
        load_problems(write(_row(answer_latex="")))
