"""What the two small models of the package learned from: conversations about the world, by number, without end."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterable, Mapping, Sequence

from perception_r1_jax.assets import MINI_JUDGE_PROMPT
from perception_r1_jax.data.geometry_world.draw import render
from perception_r1_jax.data.geometry_world.facts import ANGLE, LENGTH, Fact, make_fact
from perception_r1_jax.data.geometry_world.families import FAMILIES
from perception_r1_jax.data.geometry_world.judging import judge_answer
from perception_r1_jax.data.geometry_world.language import ask, deny, say, say_freely, statements
from perception_r1_jax.data.geometry_world.layout import Drawing
from perception_r1_jax.data.geometry_world.problems import (
    ALIKE,
    LOOK,
    WorldProblem,
    look_first,
    make_problem,
    make_puzzle,
    numbers_from_left_to_right,
    respond,
    survey,
    tell,
)
from perception_r1_jax.data.geometry_world.puzzle import LETTERS, Puzzle
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest, load_prompt
from perception_r1_jax.records import IMAGE_MARKER, Conversation, Message

INSTRUCTION = "Think, then answer in \\boxed{}."
"""Follows every question that wants a solution, in training and in use (`config.format_instruction`)."""

DESCRIBE = "Describe the picture."
SURVEY = "Describe the picture from left to right."
READ = "Which letters and numbers are in the picture, from left to right?"
BIND = "Which numbers are in the picture, and of what, from left to right?"
PROBES = 3
"""At most so many single facts are asked for in one conversation."""

LEFT_OUT = 0.7
"""Share of the first pictures that show only up to three of their texts, and of those that show no lines."""

BARE = 0.5
"""Share of the pictures that show no lines where it is asked which number is of what."""

CUT = 0.05
"""Share of the judge's responses that break off somewhere."""

JUDGED = {"statements": 1, "nearly": 2, "use": 1}
"""How often a judge's conversation is about a few statements, about nearly what a response states, or as in use."""

LOOKS = 0.3
"""Share of the judge's whole responses that begin as one does that looks first."""

STATEMENTS = 4
"""At most so many statements stand alone."""

ANNOTATIONS = 6
"""At most so many annotations are near to what a text states."""

DENIED = 0.3
"""Share of single statements that are turned into their opposite."""

RETOLD = (5, 4, 1, 2, 2)
"""How often a response states a fact, another one in its place, its opposite, nothing, and the fact and another one."""

RETOLD_BADLY = (4, 3, 3, 2, 5)
"""The same where more is to be told apart."""

TASKS = {"solve": 9, "look": 3, "describe": 2, "survey": 6, "read": 2, "probe": 4}
"""How often a policy's conversation is about what.

To state things in any order and any words ("solve", "describe"), a model has to find the number of a given side, which
a small one hardly learns. From left to right ("look", "survey") it has to find the side of a given number, which it
does learn. Only every fourth solution begins so: that it pays to look first is left to GRPO to find out.
"""


def reading_conversation(index: int, split: str = "train", seed: int = 0) -> Conversation:
    """A picture, often with most of it left out, and the letters and numbers in it: what a policy learns first."""
    drawing = make_problem(index, split, seed, ALIKE).drawing
    rng = random.Random(f"reading/{seed}/{split}/{index}")
    if rng.random() < LEFT_OUT:
        texts = rng.sample(drawing.texts, rng.randint(1, 3))
        drawing = dataclasses.replace(drawing, texts=tuple(texts))
    if rng.random() < LEFT_OUT:
        drawing = _without_lines(drawing)
    return _one_turn(f"reading-{seed}/{split}/{index}", drawing, READ, _read(drawing))


def binding_conversation(index: int, split: str = "train", seed: int = 0) -> Conversation:
    """A picture, often without its lines, and each number in it with its side or angle: what a policy learns second."""
    problem = make_problem(index, split, seed, ALIKE)
    rng = random.Random(f"binding/{seed}/{split}/{index}")
    drawing = _without_lines(problem.drawing) if rng.random() < BARE else problem.drawing
    return _one_turn(f"binding-{seed}/{split}/{index}", drawing, BIND, _bind(problem))


def _one_turn(name: str, drawing: Drawing, question: str, answer: str) -> Conversation:
    messages = (Message("user", IMAGE_MARKER + question), Message("assistant", answer))
    return Conversation(name, (render(drawing),), messages)


def _without_lines(drawing: Drawing) -> Drawing:
    return dataclasses.replace(drawing, lines=(), marks=(), arcs=(), circles=(), dots=())


def _bind(problem: WorldProblem) -> str:
    """Each number and the one name of what it stands at, as "12 PJ, 40° ABC"."""
    unit = {LENGTH: "", ANGLE: "°"}
    return ", ".join(f"{fact.value}{unit[fact.kind]} {fact.names[0]}" for fact in numbers_from_left_to_right(problem))


def policy_conversation(
    index: int, split: str = "train", seed: int = 0, tasks: Mapping[str, int] = TASKS
) -> Conversation:
    """A picture and one thing to do with it: solve a problem, tell all facts, read all texts, or answer probes."""
    rng = random.Random(f"task/{seed}/{split}/{index}")
    (task,) = rng.choices(list(tasks), list(tasks.values()))
    return _converse(task, index, split, seed)


def _converse(task: str, index: int, split: str, seed: int) -> Conversation:
    problem = make_problem(index, split, seed, ALIKE)
    rng = random.Random(f"policy/{seed}/{split}/{index}")
    turns = _turns(task, problem, rng)
    messages = [Message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn)]
    messages[0] = Message("user", IMAGE_MARKER + messages[0].content)
    return Conversation(f"{task}-{seed}/{split}/{index}", (render(problem.drawing),), tuple(messages))


def _turns(task: str, problem: WorldProblem, rng: random.Random) -> list[tuple[str, str]]:
    shown = problem.puzzle.figure.facts()
    match task:
        case "solve":
            return [(f"{problem.question} {INSTRUCTION}", problem.solution)]
        case "look":
            return [(f"{problem.question} {INSTRUCTION}", look_first(problem, rng))]
        case "describe":
            return [(DESCRIBE, " ".join(tell(shown, rng)))]
        case "survey":
            return [(SURVEY, " ".join(survey(problem, shown)))]
        case "read":
            return [(READ, _read(problem.drawing))]
        case "probe":
            return [ask(fact, rng) for fact in rng.sample(shown, min(PROBES, len(shown)))]
        case _:
            raise ValueError(f"No task {task!r}; take of {', '.join(TASKS)}.")


def _read(drawing: Drawing) -> str:
    return ", ".join(text for text, (x, _) in sorted(drawing.texts, key=lambda item: item[1][0]))


def judge_conversation(index: int, split: str = "train", seed: int = 0) -> Conversation:
    """Some annotations, a response that states some of them and others falsely, the judge's notes and the verdicts.

    Some are as in use. The others ask about what was just read, rightly or nearly so: there is more to tell apart.
    """
    rng = random.Random(f"judged/{seed}/{split}/{index}")
    (task,) = rng.choices(list(JUDGED), list(JUDGED.values()))
    request = _judged(task, index, split, seed, rng)
    if rng.random() < LOOKS:
        request = dataclasses.replace(request, response=request.response.replace("\n", f"\n{LOOK} ", 1))
    asked = (Message(**message) for message in _judge_prompt().messages(request))
    name = f"{task}-{seed}/{split}/{index}"
    return Conversation(name, (), (*asked, Message("assistant", judge_answer(request))))


def _judged(task: str, index: int, split: str, seed: int, rng: random.Random) -> JudgeRequest:
    if task == "use":
        return judge_case(index, split, seed)
    case = _draw_case(split, rng, RETOLD_BADLY)
    response = _few_statements(split, rng) if task == "statements" else case.response
    return JudgeRequest(_nearly_stated(response, rng) or case.annotations, response)


def _few_statements(split: str, rng: random.Random) -> str:
    shown = _draw_puzzle(split, rng).figure.facts()
    facts = rng.choices(shown, k=rng.randint(1, STATEMENTS))  # some of them twice, and not always the same
    told = tell([fact if rng.random() < 0.6 else misread(fact, rng) for fact in facts], rng)
    return " ".join(deny(sentence) if rng.random() < DENIED else sentence for sentence in told)


def _nearly_stated(response: str, rng: random.Random) -> tuple[str, ...]:
    """Annotations about what a response states or denies, as it is there or misread."""
    stated = [statement.fact for statement in statements(response)]
    drawn = [rng.choice(stated) for _ in range(rng.randint(1, ANNOTATIONS)) if stated]
    return _annotations(rng.choice((fact, fact, fact, misread(fact, rng), _misread_names(fact, rng))) for fact in drawn)


def _annotations(facts: Iterable[Fact]) -> tuple[str, ...]:
    """In words, one of each thing that they are about."""
    return tuple(map(say, {fact.subject: fact for fact in facts}.values()))


def _draw_puzzle(split: str, rng: random.Random) -> Puzzle:
    return make_puzzle(rng.choice(list(FAMILIES)), split, rng)


@functools.cache
def _judge_prompt() -> JudgePrompt:
    return load_prompt(MINI_JUDGE_PROMPT)


def judge_case(index: int, split: str = "train", seed: int = 0) -> JudgeRequest:
    """A request to the judge: facts of a puzzle, and a response that keeps, alters, denies or leaves out each.

    Of some it also states another value, or other names.
    """
    return _draw_case(split, random.Random(f"judge/{seed}/{split}/{index}"), RETOLD)


def _draw_case(split: str, rng: random.Random, retold: Sequence[int]) -> JudgeRequest:
    puzzle = _draw_puzzle(split, rng)
    shown = puzzle.figure.facts()
    sentences = [sentence for fact in shown for sentence in retell(fact, rng, retold)]
    response = respond(puzzle, rng.sample(sentences, len(sentences)), rng)
    if rng.random() < CUT:
        response = response[: rng.randrange(len(response))]
    listed = [*puzzle.needed, *(misread(fact, rng) for fact in shown if rng.random() < 0.3)]
    return JudgeRequest(_annotations(rng.sample(listed, len(listed))), response)


def retell(fact: Fact, rng: random.Random, weights: Sequence[int]) -> list[str]:
    """What a response makes of a fact, so often each: the fact, another one, its opposite, nothing, or both."""
    sentence, other = say_freely(fact, rng), say_freely(misread(fact, rng), rng)
    (told,) = rng.choices(([sentence], [other], [deny(sentence)], [], [sentence, other]), weights)
    return told


def misread(fact: Fact, rng: random.Random) -> Fact:
    """A fact close to another: a digit changed, a letter changed, or an angle's vertex moved."""
    if fact.value is not None and rng.random() < 0.6:
        return dataclasses.replace(fact, value=_misread_number(fact.value, rng))
    return _misread_names(fact, rng)


def _misread_names(fact: Fact, rng: random.Random) -> Fact:
    names = list(fact.names)
    place = rng.randrange(len(names))
    names[place] = _misread_name(names[place], "".join(names), rng)
    return make_fact(fact.kind, tuple(names), fact.value)


def _misread_number(number: int, rng: random.Random) -> int:
    """One digit replaced, the first never by 0; or two neighbours exchanged."""
    digits = str(number)
    place = rng.randrange(len(digits))
    if place and digits[place] != digits[place - 1] and digits[place] != "0" and rng.random() < 0.25:
        return int(digits[: place - 1] + digits[place] + digits[place - 1] + digits[place + 1 :])
    others = [digit for digit in "0123456789" if digit != digits[place] and (place or digit != "0")]
    return int(digits[:place] + rng.choice(others) + digits[place + 1 :])


def _misread_name(name: str, taken: str, rng: random.Random) -> str:
    """One letter replaced by an unused one; of an angle also its letters turned round."""
    if len(name) == 3 and rng.random() < 0.4:
        return name[1:] + name[0]
    place = rng.randrange(len(name))
    return name[:place] + rng.choice([letter for letter in LETTERS if letter not in taken]) + name[place + 1 :]
