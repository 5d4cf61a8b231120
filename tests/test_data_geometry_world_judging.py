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
        ("The length of AB is 12.", "BA is 12.", "AB is 12: BA is 12. AA=BB=12 12= 1"),
        ("The length of AB is 12.", "AC is 12. Segment BA measures 21.", "AB is 12: BA measures 21. AA=BB=12 21/ 0"),
        ("The length of AB is 12.", "CD is 12. AC is 5.", "AB is 12: AC is 5. AA=BC/12 5/ 0"),
        ("The length of AB is 12.", "CA is 5. BD is 12.", "AB is 12: BD is 12. AB/BD/12 12= 0"),
        ("The length of AB is 12.", "AB is not 12.", "AB is 12: AB is not 12. AA=BB=12 12= not 0"),
        ("The length of AB is 12.", "AB is 12. BA = not 12.", "AB is 12: BA = not 12. AA=BB=12 12= not 0"),
        ("The length of AB is 12.", "AB is 12. BA = 21.", "AB is 12: BA = 21. AA=BB=12 21/ 0"),
        ("The length of AB is 12.", "Angle ABC is 12 degrees.", "AB is 12: no 0"),
        ("The length of AB is 12.", "", "AB is 12: no 0"),
        (
            "Angle ABC measures 40 degrees.",
            "Angle CBA = 40 degrees.",
            "Angle ABC measures 40: Angle CBA = 40. AA=BB=CC=40 40= 1",
        ),
        (
            "Angle ABC measures 40 degrees.",
            "Angle BCA = 40 degrees.",
            "Angle ABC measures 40: Angle BCA = 40. AA=BC/CB/40 40= 0",
        ),
        (
            "AB is parallel to CD.",
            "DC and BA are parallel.",
            "AB is parallel to CD: DC and BA are parallel. AA=BB=CC=DD= 1",
        ),
        (
            "AB is parallel to CD.",
            "AB is parallel to EF.",
            "AB is parallel to CD: AB is parallel to EF. AA=BB=CE/DF/ 0",
        ),
        (
            "AB is parallel to CD.",
            "AB is parallel to EF. CD is parallel to AB.",
            "AB is parallel to CD: CD is parallel to AB. AA=BB=CC=DD= 1",
        ),
        (
            "Angle ABC is a right angle.",
            "Angle ABD is right.",
            "Angle ABC is a right angle: Angle ABD is right. AA=BB=CD/ 0",
        ),
        (
            "O is the center of the circle.",
            "The center of the circle is O.",
            "O is the center: center of the circle is O. OO= 1",
        ),
    ],
)
def test_a_note_has_what_is_asked_a_quotation_of_what_is_most_like_it_both_side_by_side_and_the_verdict(
    annotation, response, note
):
    answer = judge_answer(JudgeRequest((annotation,), response))
    assert answer == f"<think>\n1. {note}\n</think>\n<info1>{note[-1]}</info1>"


@pytest.mark.parametrize("index", range(100))
def test_verdicts_follow_from_the_notes_and_are_the_checkers(index):
    case = judge_case(index)
    answer = judge_answer(case)
    notes = answer.partition("\n</think>\n")[0].split("\n")[1:]
    true = [reflected(annotation, case.response) for annotation in case.annotations]
    assert [re.search(r"/| not? ", note) is None for note in notes] == true
    assert parse_verdicts(answer, len(true)).verdicts == tuple(map(float, true))
