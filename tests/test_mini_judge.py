"""The embedded judge agrees with the world's own checker, on responses to problems it never saw, and on traps.

Most facts of a trap are stated rightly, and one is not: a digit or a letter is changed, or it is denied, or two
things are said of it.
"""

from __future__ import annotations

import itertools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perception_r1_jax.assets import MINI_JUDGE, MINI_JUDGE_PROMPT
from perception_r1_jax.data.geometry_world.checker import reflected
from perception_r1_jax.data.geometry_world.conversations import judge_case, misread
from perception_r1_jax.data.geometry_world.facts import Fact
from perception_r1_jax.data.geometry_world.families import FAMILIES
from perception_r1_jax.data.geometry_world.language import deny, say, say_freely
from perception_r1_jax.data.geometry_world.problems import make_puzzle, respond
from perception_r1_jax.judge.on_mesh import Judge, load_judge
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.sharding import make_mesh

AGREEMENT = 0.97
CASES = 128
SETTINGS = {"mode": "free", "max_prompt_tokens": 160, "max_new_tokens": 256, "batch_size": 32}


def load(dtype, *, weights_int8: bool = False):
    return load_judge(
        MINI_JUDGE,
        make_mesh(devices=jax.devices()[:1]),
        prompt=MINI_JUDGE_PROMPT,
        dtype=dtype,
        weights_int8=weights_int8,
        **SETTINGS,
    )


@pytest.fixture(scope="module")
def judge():
    return load(jnp.float32)


def digit_changed(fact: Fact, rng: random.Random) -> str:
    """The fact with another number, in some wording."""
    return say_freely(_other(fact, rng, lambda other: other.names == fact.names), rng)


def letters_changed(fact: Fact, rng: random.Random) -> str:
    """The fact about something else, in some wording."""
    return say_freely(_other(fact, rng, lambda other: other.value == fact.value), rng)


def denied(fact: Fact, rng: random.Random) -> str:
    """The opposite of the fact."""
    return deny(say_freely(fact, rng))


def contradicted(fact: Fact, rng: random.Random) -> str:
    """The fact, and later or before also another number."""
    return " ".join(rng.sample([say_freely(fact, rng), digit_changed(fact, rng)], 2))


def _other(fact: Fact, rng: random.Random, keeps) -> Fact:
    return next(other for other in iter(lambda: misread(fact, rng), None) if keeps(other))


def trap(alter, index: int) -> JudgeRequest:
    """A right response of the test split in which one fact is altered, and the true annotations."""
    rng = random.Random(f"trap/{index}")
    puzzle = make_puzzle(rng.choice(list(FAMILIES)), "test", rng)
    numbers = alter in (digit_changed, contradicted)
    altered = rng.choice([fact for fact in puzzle.needed if not numbers or fact.value is not None])
    sentences = [alter(fact, rng) if fact is altered else say_freely(fact, rng) for fact in puzzle.needed]
    return JudgeRequest(tuple(map(say, puzzle.needed)), respond(puzzle, sentences, rng))


def agreement(judge, requests: list[JudgeRequest]) -> float:
    """Share of all verdicts that are the checker's."""
    judgements = judge.judge(requests)
    assert all(judgement.verdicts is not None for judgement in judgements)
    said = np.concatenate([judgement.verdicts for judgement in judgements])
    true = [reflected(annotation, request.response) for request in requests for annotation in request.annotations]
    return float(np.mean(said == np.array(true)))


def test_it_agrees_on_responses_of_a_split_that_it_never_saw(judge):
    assert agreement(judge, [judge_case(index, "test") for index in range(CASES)]) >= AGREEMENT


def test_digits_that_it_chooses_are_those_that_it_writes_freely(judge):
    """On every request whose free answer is well-formed: the notes before its verdicts are its own in both modes."""
    altered = [trap(alter, index) for alter in (digit_changed, denied) for index in range(CASES // 8)]
    requests = [judge_case(index, "test") for index in range(CASES // 2)] + altered
    settings = SETTINGS | {"mode": "constrained", "max_thought_tokens": SETTINGS["max_new_tokens"]}
    chooser = Judge(judge._engine, judge._processor, judge.prompt, **settings)
    free, chosen = judge.judge(requests), chooser.judge(requests)
    formed = [pair for pair in zip(free, chosen) if not pair[0].failed]
    assert len(formed) > 0.95 * len(requests)
    assert [one.verdicts for one, _ in formed] == [other.verdicts for _, other in formed]
    assert {verdict for one, _ in formed for verdict in one.verdicts} == {0, 1}
    for _, other in formed:
        assert [probability > 0.5 for probability in other.probabilities] == list(other.verdicts)


@pytest.mark.slow
def test_in_8_bits_it_says_what_it_says_in_bfloat16():
    requests = [judge_case(index, "test") for index in range(CASES)]
    whole, small = (load(jnp.bfloat16, weights_int8=int8).judge(requests) for int8 in (False, True))
    pairs = [
        pair
        for one, other in zip(whole, small)
        for pair in itertools.zip_longest(one.verdicts or (), other.verdicts or ())
    ]
    share = np.mean([one == other for one, other in pairs])
    print(f"{share:.2%} of {len(pairs)} verdicts agree")
    assert share >= 0.99


@pytest.mark.parametrize("alter", [digit_changed, letters_changed, denied, contradicted])
def test_it_is_not_taken_in(judge, alter):
    assert agreement(judge, [trap(alter, index) for index in range(CASES)]) >= AGREEMENT
