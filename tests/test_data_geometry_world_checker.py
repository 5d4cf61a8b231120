"""The reader of statements and the checker, sentence by sentence."""

from __future__ import annotations

import random

import pytest

from perception_r1_jax.data.geometry_world import checker, facts
from perception_r1_jax.data.geometry_world.language import deny, read_fact, say, statements
from perception_r1_jax.data.geometry_world.problems import look_first, make_problem

ROW = {
    "facts": ["The length of AB is 7.", "The length of BC is 12.", "Angle ABC measures 40 degrees."],
    "needed": ["The length of AB is 7.", "Angle ABC measures 40 degrees."],
    "result": ["Angle ACB measures 70 degrees."],
    "probe_question": "What is the length of AB?",
    "probe_answer": "7",
}
ALL = "AB is 7. Angle CBA is 40 degrees."
KINDS = [
    facts.length("AB", 7),
    facts.angle("ABC", 40),
    facts.right("ABC"),
    facts.equal("AB", "CD"),
    facts.parallel("CD", "AB"),
    facts.diameter("BA"),
    facts.center("Q"),
]


def read(text):
    return {(statement.fact, statement.denied) for statement in statements(text)}


@pytest.mark.parametrize("fact", KINDS, ids=lambda fact: fact.kind)
def test_every_way_to_say_a_fact_is_read_back_and_its_denial_too(fact):
    for way in range(3):
        sentence = say(fact, way)
        assert read_fact(sentence) == fact
        assert read(sentence[0].lower() + sentence[1:] if sentence.startswith("Angle") else sentence) == {(fact, False)}
        if deny(sentence) != sentence:
            assert read(deny(sentence)) == {(fact, True)}, deny(sentence)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("BA = 7 and angle CBA is 40", {facts.length("AB", 7), facts.angle("ABC", 40)}),
        ("AB + BC = 19", set()),  # a sum is no length of BC
        ("angle ACB = 180 - 40 - 70 = 70", set()),  # nor is a calculation's first number
        ("AB is 7.5", set()),
        ("AB is 70 degrees", set()),
        ("Angle ABCD is 40", set()),
        ("AB is equal to CD, and AC is parallel to BD.", {facts.equal("AB", "CD"), facts.parallel("AC", "BD")}),
    ],
)
def test_what_is_a_statement_and_what_is_not(text, found):
    assert {fact for fact, _ in read(text)} == found


@pytest.mark.parametrize(
    ("response", "perceived", "right", "wrong", "states"),
    [
        (ALL, True, 2, 0, ("right", "right")),
        ("AB is 7.", False, 1, 0, ("right", "absent")),
        ("AB is 9. Angle ABC is 40 degrees.", False, 1, 1, ("misread", "right")),
        (ALL + " BC is 13.", False, 2, 1, ("right", "right")),  # nobody needs it, but it is wrong
        (ALL + " AC is 5.", False, 2, 1, ("right", "right")),  # not in the picture, and not so
        (ALL + " AB is 8.", False, 2, 1, ("misread", "right")),  # both ways
        (ALL + " AB is not 7.", False, 2, 1, ("misread", "right")),
        (ALL + " Angle ACB is 70 degrees.", True, 3, 0, ("right", "right")),  # true, though not written there
        (ALL + " So angle ACB is 75 degrees.", True, 2, 0, ("right", "right")),  # reasoning, not seeing
        (ALL + " So AB is 8.", False, 2, 1, ("misread", "right")),  # contradicts the picture
        ("AC is 7. Angle ABC is 40 degrees.", False, 1, 1, ("misread", "right")),  # seen, and given to another side
        ("AB is 7. Angle BAC is 40 degrees.", False, 1, 1, ("right", "misread")),
        ("Angle BAC is 7 degrees. Angle ABC is 40 degrees.", False, 1, 1, ("absent", "right")),  # no length
        ("AC is 5. Angle ABC is 40 degrees.", False, 1, 1, ("absent", "right")),  # neither its name nor its number
        ("AC is not 7. Angle ABC is 40 degrees.", False, 2, 0, ("absent", "right")),
        ("", False, 0, 0, ("absent", "absent")),
    ],
)
def test_perception(response, perceived, right, wrong, states):
    assert checker.perceive(ROW, response) == checker.Perception(perceived, right, wrong, states)


@pytest.mark.parametrize(
    ("response", "state"),
    [
        ("AC is parallel to DB.", "misread"),
        ("AB is not parallel to CD.", "misread"),
        ("AC is parallel to DB. AB is parallel to CD.", "right"),
        ("AC and BD are equal.", "absent"),
    ],
)
def test_a_relation_between_other_things_is_misread(response, state):
    row = ROW | {name: ["AB is parallel to CD."] for name in ("facts", "needed")}
    assert checker.perceive(row, response).states == (state,)


WRONG = "AB is 9. Angle ABC is 40 degrees."


@pytest.mark.parametrize(
    ("said", "again"),
    [
        (ALL, ALL),
        (ALL, "Segment BA measures 7. Angle ABC = 40 degrees."),
        (ALL, "So AB is 7."),
        (WRONG, "So AB is 9."),
    ],
)
def test_saying_a_thing_twice_counts_once_in_whatever_words(said, again):
    assert checker.perceive(ROW, said + " " + again) == checker.perceive(ROW, said)


@pytest.mark.parametrize(
    ("response", "looks_first", "wrong_kinds"),
    [
        (ALL, False, ()),
        ("From left to right: " + ALL, True, ()),
        ("From left to right: AC is 5. AB is 9. Angle ABC is 41 degrees. AB is parallel to BC.", True,
         ("angle", "length", "length", "parallel")),
    ],
)  # fmt: skip
def test_traits(response, looks_first, wrong_kinds):
    assert checker.traits(ROW, response) == checker.Traits(looks_first, wrong_kinds)
    assert len(wrong_kinds) == checker.perceive(ROW, response).wrong


def test_a_response_of_the_world_that_looks_first_is_known():
    problem = make_problem(3)
    responses = [look_first(problem, random.Random(0)), problem.solution]
    assert [checker.traits(problem.row(), response).looks_first for response in responses] == [True, False]
    assert len({kind[0] for kind in facts.KINDS}) == len(facts.KINDS)  # records keep the first letter


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("BA = 7.", True),
        ("AB is 17.", False),
        ("AB is 1.", False),
        ("AC is 7.", False),
        ("AB is not 7.", False),
        ("AB is 7. The length of BA is not 7.", False),
        ("AB is 7. The length of BA is 9.", False),
        ("AB is 9. AB is 7.", False),
        ("AB is 7. AB is not 9.", True),
        ("AB is 7. BC is 9.", True),
        ("AB is not 9.", False),
    ],
)
def test_reflected(response, expected):
    assert checker.reflected("The length of AB is 7.", response) is expected


@pytest.mark.parametrize(
    ("answer", "response", "right"),
    [
        ("7", "7", True),
        ("7", "It is 7.", True),
        ("7", "17", False),
        ("7", "7 or 9", False),
        ("7", "", False),
        ("AB", "BA", True),
        ("ABC", "CBA", True),
        ("ABC", "BAC", False),
    ],
)
def test_probe(answer, response, right):
    assert checker.probe_right({"probe_answer": answer}, response) is right
