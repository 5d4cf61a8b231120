"""What the small models learn from."""

from __future__ import annotations

import random
import re

import pytest

from perception_r1_jax.data.geometry_world import checker, facts, make_problem
from perception_r1_jax.data.geometry_world.conversations import (
    JUDGED,
    READ,
    STATEMENTS,
    TASKS,
    binding_conversation,
    judge_case,
    judge_conversation,
    misread,
    policy_conversation,
    reading_conversation,
)
from perception_r1_jax.data.geometry_world.language import read_fact, statements
from perception_r1_jax.data.geometry_world.problems import ALIKE, LOOK

CASES = [judge_case(index) for index in range(200)]


def world(index):
    """The problem that conversation number `index` is about."""
    return make_problem(index, shares=ALIKE)


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
        at = {text: x for text, (x, _) in world(index).drawing.texts}
        texts = world(index).drawing.texts
        assert sorted(answer.split(", ")) == sorted(text for text, _ in texts)
        if len(at) == len(texts):  # a text that stands twice has no one place
            places = [at[text] for text in answer.split(", ")]
            assert places == sorted(places)


def test_first_pictures_mostly_show_few_texts_and_the_answer_names_those_that_are_drawn():
    answers = [reading_conversation(index).messages[1].content.split(", ") for index in range(100)]
    for index, answer in enumerate(answers):
        texts = [text for text, _ in world(index).drawing.texts]
        assert all(answer.count(text) <= texts.count(text) for text in answer)
    assert 0.6 < sum(len(answer) <= 3 for answer in answers) / len(answers) < 0.85
    assert any(len(answer) > 4 for answer in answers)


def test_each_number_is_named_with_what_it_stands_at_from_left_to_right():
    for index in range(100):
        problem = world(index)
        numbers = problem.drawing.texts[len(problem.puzzle.figure.points) :]
        places = {text.removesuffix("°"): x for text, (x, _) in numbers}
        pairs = [pair.split() for pair in binding_conversation(index).messages[1].content.split(", ")]
        told = {(name, int(number.removesuffix("°"))) for number, name in pairs}
        shown = {(fact.names[0], fact.value) for fact in problem.puzzle.figure.facts() if fact.value is not None}
        assert told == shown
        assert all(number.endswith("°") == (len(name) == 3) for number, name in pairs)
        if len(places) == len(pairs):  # a number that stands twice has no one place
            left = [places[number.removesuffix("°")] for number, _ in pairs]
            assert left == sorted(left)


def test_to_look_first_is_to_go_over_the_picture_from_left_to_right_and_then_to_solve():
    made = [policy_conversation(index, tasks={"look": 1}) for index in range(60)]
    bound = [binding_conversation(index).messages[1].content for index in range(60)]
    for index, conversation in enumerate(made):
        problem, response = world(index), conversation.messages[1].content
        assert response.startswith(f"<think>\n{LOOK} ")
        row = problem.row()
        assert checker.perceive(row, response).perceived
        assert response.endswith(f"\\boxed{{{problem.puzzle.answer}}}\n</answer>")
        seen = (statement for statement in statements(response) if not statement.concluded and statement.fact.value)
        told = [statement.fact for statement in sorted(seen, key=lambda statement: response.index(statement.words))]
        numbers = [f"{fact.value}{'°' * (fact.kind == facts.ANGLE)} {fact.names[0]}" for fact in told]
        assert numbers == [pair for pair in bound[index].split(", ") if pair in numbers]


def test_a_survey_tells_all_in_one_way_and_a_description_in_many():
    def told(task, index):
        return policy_conversation(index, tasks={task: 1}).messages[1].content

    for index in range(40):
        shown = set(world(index).puzzle.figure.facts())
        for task in ("survey", "describe"):
            assert {statement.fact for statement in statements(told(task, index))} == shown
    assert all(" measures " not in told("survey", index) for index in range(40))
    assert any(" measures " in told("describe", index) for index in range(40))


def test_half_of_the_pictures_that_ask_for_numbers_have_no_lines():
    drawn = [conversation.images[0] for conversation in map(binding_conversation, range(100))]
    bare = sum(image != world(index).problem().images[0] for index, image in enumerate(drawn))
    assert 35 < bare < 65


def test_the_judge_learns_on_a_few_statements_on_near_misses_and_on_what_it_will_be_asked():
    made = [judge_conversation(index) for index in range(200)]
    tasks = [conversation.conversation_id.split("-")[0] for conversation in made]
    assert set(tasks) == set(JUDGED)
    for task, conversation in zip(tasks, made):
        response = conversation.messages[1].content.partition("\n<info1>")[0]
        assert response.startswith("<think>"[: len(response)]) == (task != "statements")  # some are broken off early
    alone = [judged(index)[0] for index, task in enumerate(tasks) if task == "statements"]
    assert {len(list(statements(response))) for response in alone} == set(range(1, STATEMENTS + 1))


def judged(index):
    """The response and the annotations of a judge's conversation, and its reply."""
    _, user, reply = judge_conversation(index).messages
    response, _, annotations = user.content.partition("\n<info1>")
    return response, re.findall(r"<info\d+>(.*)</info\d+>", f"<info1>{annotations}"), reply.content


def test_some_of_the_responses_that_the_judge_hears_look_first():
    whole = [response for response, _, _ in map(judged, range(200)) if response.startswith("<think>\n")]
    assert 0.2 < sum(response.startswith(f"<think>\n{LOOK} ") for response in whole) / len(whole) < 0.4


def test_a_task_that_nobody_knows_is_named():
    with pytest.raises(ValueError, match="No task 'solv'; take of solve, look"):
        policy_conversation(0, tasks={"solv": 1})


def test_the_verdicts_are_those_of_the_checker():
    for index in range(100):
        response, listed, reply = judged(index)
        said = re.findall(r"<info\d+>([01])</info\d+>", reply)
        assert [bool(int(v)) for v in said] == [checker.reflected(a, response) for a in listed]
        assert said


def test_some_of_what_the_judge_is_asked_is_stated_and_contradicted_by_another_value():
    found = 0
    for response, listed, _ in map(judged, range(100)):
        said = {statement.fact for statement in statements(response) if not statement.denied}
        asked = said & set(map(read_fact, listed))
        found += sum(any(other.subject == fact.subject and other != fact for other in said) for fact in asked)
    assert found > 5


def test_verdicts_cannot_be_guessed():
    verdicts = "".join(judge_conversation(index).messages[-1].content.split("</think>")[1] for index in range(400))
    assert 0.3 < verdicts.count(">1<") / (verdicts.count(">1<") + verdicts.count(">0<")) < 0.6


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
