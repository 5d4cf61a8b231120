"""What the small models learn from."""

from __future__ import annotations

import random
import re

import pytest

from perception_r1_jax.data.geometry_world import checker, facts, make_problem
from perception_r1_jax.data.geometry_world.conversations import (
    READ,
    TASKS,
    fact_conversation,
    judge_case,
    judge_conversation,
    misread,
    name_conversation,
    number_conversation,
    policy_conversation,
    reading_conversation,
)

CASES = [judge_case(index) for index in range(200)]


def test_a_conversation_depends_on_its_number_alone():
    assert policy_conversation(5) == policy_conversation(5) != policy_conversation(6)
    assert judge_conversation(5) == judge_conversation(5) != judge_conversation(5, "val")


def test_every_task_appears_and_turns_alternate():
    made = [policy_conversation(index) for index in range(100)]
    assert {conversation.conversation_id.split("-")[0] for conversation in made} == set(TASKS)
    for conversation in made:
        roles = [message.role for message in conversation.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert [message.content.count("<image>") for message in conversation.messages].count(1) == 1


def test_a_picture_is_read_from_left_to_right():
    made = [(index, policy_conversation(index)) for index in range(140)]
    asked = [(index, c.messages[1].content) for index, c in made if c.messages[0].content.endswith(READ)]
    assert asked
    for index, answer in asked:
        at = {text: x for text, (x, _) in make_problem(index).drawing.texts}
        texts = make_problem(index).drawing.texts
        assert sorted(answer.split(", ")) == sorted(text for text, _ in texts)
        if len(at) == len(texts):  # a text that stands twice has no one place
            places = [at[text] for text in answer.split(", ")]
            assert places == sorted(places)


def test_first_pictures_mostly_show_few_texts_and_the_answer_names_those_that_are_drawn():
    answers = [reading_conversation(index).messages[1].content.split(", ") for index in range(100)]
    for index, answer in enumerate(answers):
        texts = [text for text, _ in make_problem(index).drawing.texts]
        assert all(answer.count(text) <= texts.count(text) for text in answer)
    assert 0.6 < sum(len(answer) <= 3 for answer in answers) / len(answers) < 0.85
    assert any(len(answer) > 4 for answer in answers)


JUDGE_STAGES = [number_conversation, name_conversation, fact_conversation, judge_conversation]


def request_and_verdicts(conversation):
    """The response, the annotations and the verdicts of a judge's conversation."""
    response, _, annotations = conversation.messages[1].content.partition("\n<info1>")
    listed = re.findall(r"<info\d+>(.*)</info\d+>", f"<info1>{annotations}")
    return response, listed, re.findall(r"<info\d+>([01])</info\d+>", conversation.messages[-1].content)


@pytest.mark.parametrize("draw", JUDGE_STAGES)
def test_the_verdicts_are_those_of_the_checker(draw):
    for index in range(100):
        response, listed, said = request_and_verdicts(draw(index))
        assert [bool(int(v)) for v in said] == [checker.reflected(a, response) for a in listed]
        assert said


@pytest.mark.parametrize("draw", JUDGE_STAGES)
def test_nothing_can_be_guessed(draw):
    verdicts = [v for index in range(400) for v in request_and_verdicts(draw(index))[2]]
    assert 0.35 < verdicts.count("1") / len(verdicts) < 0.6


def without(pattern, *texts):
    return {re.sub(pattern, "", text) for text in texts}


def test_a_judge_learns_on_one_number_then_one_name_then_one_fact_then_several():
    numbers, names, single, several = (
        [request_and_verdicts(draw(index)) for index in range(100)] for draw in JUDGE_STAGES
    )
    assert all(len(without(r"\d", response, *listed)) == 1 for response, listed, _ in numbers)
    assert all(len(without(r"[A-Z]", response, *listed)) == 1 for response, listed, _ in names)
    assert any(len(without(r"[A-Z0-9]", response, *listed)) == 2 for response, listed, _ in single)
    assert {len(listed) for _, listed, _ in numbers + names + single} == {1}
    assert max(len(listed) for _, listed, _ in several) > 3
    assert 0.3 < sum("<think>" in response for response, _, _ in several) / len(several) < 0.7


def test_cases_are_hard_in_both_directions():
    verdicts = [checker.reflected(a, case.response) for case in CASES for a in case.annotations]
    assert 0.2 < sum(verdicts) / len(verdicts) < 0.5
    assert any(" not " in case.response for case in CASES)


def test_a_misread_fact_is_another_fact_of_the_same_kind():
    rng = random.Random(0)
    for fact in (facts.length("AB", 7), facts.angle("ABC", 100), facts.right("ABC"), facts.parallel("AB", "CD")):
        others = [misread(fact, rng) for _ in range(50)]
        assert fact not in others
        assert {other.kind for other in others} == {fact.kind}
        assert all(other.value is None or other.value > 0 or fact.value < 10 for other in others)
