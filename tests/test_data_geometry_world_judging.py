"""What the small judge notes down, and that its verdicts follow from the notes and are the checker's."""

from __future__ import annotations

import re

import pytest

from perception_r1_jax.data.geometry_world.checker import reflected
from perception_r1_jax.data.geometry_world.conversations import judge_case
from perception_r1_jax.data.geometry_world.judging import judge_answer
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.verdicts import parse_verdicts


@pytest.mark.parametrize(
    ("annotation", "response", "note"),
    [
        ("The length of AB is 12.", "BA is 12.", "BA is 12: The length of AB is 12.</info1> AA=BB=12 12= <info1>="),
        (
            "The length of AB is 12.",
            "Segment BA measures 21.",
            "BA measures 21: The length of AB is 12.</info1> AA=BB=21 12/ <info1>/",
        ),
        ("The length of AB is 12.", "AC is 12.", "AC is 12: The length of AB is 12.</info1> AA=CB/12 12= <info1>no"),
        ("The length of AB is 12.", "CD is 5.", "CD is 5: The length of AB is 12.</info1> CA/DB/5 12/ <info1>no"),
        (
            "The length of AB is 12.",
            "AB is not 12.",
            "AB is not 12: The length of AB is 12.</info1> AA=BB=12 12= not <info1>/",
        ),
        (
            "The length of AB is 12.",
            "AB is not 21.",
            "AB is not 21: The length of AB is 12.</info1> AA=BB=21 12/ not <info1>no",
        ),
        ("The length of AB is 12.", "Angle ABC is 12 degrees.", "Angle ABC is 12: no"),
        (
            "Angle ABC measures 40 degrees.",
            "Angle CBA = 40 degrees.",
            "Angle CBA = 40: Angle ABC measures 40 degrees.</info1> AA=BB=CC=40 40= <info1>=",
        ),
        (
            "Angle ABC measures 40 degrees.",
            "Angle BCA = 40 degrees.",
            "Angle BCA = 40: Angle ABC measures 40 degrees.</info1> AA=CB/BC/40 40= <info1>no",
        ),
        (
            "AB is parallel to CD.",
            "DC and BA are parallel.",
            "DC and BA are parallel: AB is parallel to CD.</info1> AA=BB=CC=DD= <info1>=",
        ),
        (
            "AB is parallel to CD.",
            "AB is parallel to EF.",
            "AB is parallel to EF: AB is parallel to CD.</info1> AA=BB=EC/FD/ <info1>no",
        ),
        (
            "Angle ABC is a right angle.",
            "Angle ABD is right.",
            "Angle ABD is right: Angle ABC is a right angle.</info1> AA=BB=DC/ <info1>no",
        ),
        (
            "O is the center of the circle.",
            "The center of the circle is O.",
            "center of the circle is O: O is the center of the circle.</info1> OO= <info1>=",
        ),
    ],
)
def test_a_note_has_a_statement_the_annotation_most_like_it_both_side_by_side_and_what_follows(
    annotation, response, note
):
    verdict = int(note.endswith("="))
    answer = judge_answer(JudgeRequest((annotation,), response))
    assert answer == f"<think>\n{note}\n</think>\n<info1>{verdict}</info1>"


def test_notes_are_in_the_order_of_the_statements_each_about_what_is_most_like_it():
    annotations = ("AB is parallel to CD.", "The length of BC is 7.", "The length of AB is 12.")
    answer = judge_answer(JudgeRequest(annotations, "BA is 12. AB = 21. DC is parallel to BA. BC is 7."))
    assert answer.split("\n") == [
        "<think>",
        "BA is 12: The length of AB is 12.</info3> AA=BB=12 12= <info3>=",
        "AB = 21: The length of AB is 12.</info3> AA=BB=21 12/ <info3>/",
        "DC is parallel to BA: AB is parallel to CD.</info1> AA=BB=CC=DD= <info1>=",
        "BC is 7: The length of BC is 7.</info2> BB=CC=7 7= <info2>=",
        "</think>",
        "<info1>1</info1>",
        "<info2>1</info2>",
        "<info3>0</info3>",
    ]


def test_nothing_is_noted_of_a_response_that_states_nothing():
    assert judge_answer(JudgeRequest(("AB is 12.",), "")) == "<think>\n</think>\n<info1>0</info1>"


@pytest.mark.parametrize("index", range(100))
def test_verdicts_follow_from_the_notes_and_are_the_checkers(index):
    case = judge_case(index)
    answer = judge_answer(case)
    findings = re.findall(r"<info(\d+)>(=|/|no)\n", answer.partition("</think>")[0])
    true = [reflected(annotation, case.response) for annotation in case.annotations]
    said = ({finding for place, finding in findings if int(place) == number} for number in range(1, len(true) + 1))
    assert ["=" in findings and "/" not in findings for findings in said] == true
    assert parse_verdicts(answer, len(true)).verdicts == tuple(map(float, true))
