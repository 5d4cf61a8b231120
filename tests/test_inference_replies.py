"""Replies to many prompts: nothing but the prompt and the key decides one, in whatever batch it is."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.inference import Engine, Sampling, pools
from perception_r1_jax.inference.replies import Reply, _Waiting, prompts_or_faults, reply
from perception_r1_jax.models import init_params, load_config, token_bytes
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Problem, Prompt
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests import parity

PICTURE = parity.drawing(56, 56, 0)
PROBLEMS = [
    Problem("a", "What is 1 + 1?", (PICTURE,), ""),
    Problem("b", "How long is AB?", (PICTURE,), ""),
    Problem("c", "How long is BC?", (parity.drawing(140, 56, 1),), ""),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("replies"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def processor(model_dir) -> Processor:
    return Processor.from_directory(model_dir)


@pytest.fixture(scope="module")
def engine(model_dir) -> Engine:
    model = load_config(model_dir)
    return Engine(model, init_params(model, jax.random.key(0)), make_mesh(devices=jax.devices()[:1]))


def ask(engine, processor, problems, *, batch_size=4, temperature=1.0, seed=0, bucket_of=lambda _: (80, 2)) -> list:
    sampling = Sampling(
        12, processor.stop_ids, processor.pad_id, temperature=temperature, banned_ids=processor.banned_ids
    )
    prompts = prompts_or_faults(processor.prompt, problems)
    told = []
    reply(
        engine,
        processor,
        prompts,
        sampling,
        jax.random.key(seed),
        batch_size=batch_size,
        bucket_of=bucket_of,
        on_reply=lambda name, said: told.append((name, said)),
    )
    return told


def answered(engine, processor, **fields):
    """The replies to eight prompts in two buckets, by their ids."""
    drawn = [(56, 140)[number % 3 == 2] for number in range(8)]
    problems = [
        Problem(str(number), "AB? " * number, (parity.drawing(width, 56, number),), "")
        for number, width in enumerate(drawn)
    ]
    told = ask(engine, processor, problems, bucket_of=lambda prompt: (96, len(prompt.vision.image_ids)), **fields)
    assert sorted(name for name, _ in told) == [str(number) for number in range(8)]
    return told


def test_what_is_done_makes_room_for_the_next_of_its_shape(engine, processor, monkeypatch):
    monkeypatch.setattr(pools, "PAGE_TOKENS", 4)
    calls, generate = [], engine.generate

    def counting(prompts, *args, **kwargs):
        calls.append(np.flatnonzero(prompts.lengths).size)
        return generate(prompts, *args, **kwargs)

    together = answered(engine, processor, batch_size=8)
    monkeypatch.setattr(engine, "generate", counting)
    two_rows = answered(engine, processor, batch_size=2)
    assert dict(two_rows) == dict(together)
    assert len(calls) == 3, "a call answers more prompts than it has rows: four would do for these without that"
    assert sum(calls) == 6


def test_no_more_wait_than_a_batch_of_each_shape():
    """Shapes by the first letter; what is read and not taken is counted after each step."""
    names, read, taken, faults = iter(["a1", "b1", "a2", "b2", "a3", "b3", "a4", "!", "c1"]), [], [], []

    def prompts():
        for name in names:
            read.append(name)
            yield DroppedProblem(name, "bad") if name == "!" else Prompt(Problem(name, "", (), ""), *[None] * 5)

    def bucket_of(prompt):
        return ord(prompt.problem.problem_id[0]), 0

    def check_few_wait():
        left = [name[0] for name in read if name not in taken]
        assert all(left.count(letter) <= 2 for letter in "abc")

    def take(letter, count):
        names = [prompt.problem.problem_id for prompt in waiting.take((ord(letter), 0), count)]
        taken.extend(names)
        check_few_wait()
        return names

    def next_letter():
        bucket = waiting.next_bucket()
        check_few_wait()
        return bucket and chr(bucket[0])

    waiting = _Waiting(prompts(), bucket_of, 2, lambda name, said: faults.append((name, said.fault)))
    assert next_letter() == "a"
    assert read == ["a1", "b1", "a2"]
    assert take("a", 2) == ["a1", "a2"]
    assert take("a", 1) == [], "two of b wait: their turn comes"
    assert read[-1] == "b2"
    assert next_letter() == "b"
    assert take("b", 2) == ["b1", "b2"]
    assert take("b", 1) == ["b3"]
    assert take("b", 1) == [], "two of a wait"
    assert next_letter() == "a"
    assert take("a", 2) == ["a3", "a4"]
    assert take("a", 2) == []
    assert faults == [("!", "bad")]
    assert next_letter() == "c"
    assert take("c", 2) == ["c1"]
    assert next_letter() is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_does_not_change_a_reply(engine, processor, temperature):
    alone = ask(engine, processor, PROBLEMS, batch_size=1, temperature=temperature)
    together = ask(engine, processor, PROBLEMS, temperature=temperature)
    compiled = engine.compilations
    reversed_order = ask(engine, processor, PROBLEMS[::-1], temperature=temperature)
    assert [name for name, _ in together] == ["a", "b", "c"]
    assert dict(alone) == dict(together) == dict(reversed_order)
    assert len(set(dict(alone).values())) == len(PROBLEMS), "each prompt has a reply of its own"
    assert engine.compilations == compiled


def test_a_draw_depends_on_the_key_and_the_id(engine, processor):
    first, again, other = (dict(ask(engine, processor, PROBLEMS, seed=seed)) for seed in (0, 0, 1))
    assert first == again
    assert all(first[name].token_ids != other[name].token_ids for name in first)
    same_text = [Problem(name, "How long is AB?", (PICTURE,), "") for name in ("b", "d")]
    named = dict(ask(engine, processor, same_text))
    assert named["b"] == first["b"] != named["d"]


def test_what_a_reply_holds(engine, processor):
    ((_, said),) = ask(engine, processor, PROBLEMS[:1])
    assert said.text == processor.decode(said.token_ids)
    assert (len(said.token_ids), said.finish_reason, said.fault) == (12, "length", "")
    assert said.prompt_tokens == len(processor.prompt(PROBLEMS[0]).tokens)


def test_what_cannot_be_asked_is_told_at_once(engine, processor):
    bad = [DroppedProblem("7", "invalid JSON"), Problem("no picture", "?", (b"",), "")]
    told = ask(engine, processor, [PROBLEMS[0], *bad])
    assert [name for name, _ in told] == ["7", "no picture", "a"]
    assert told[0][1] == Reply(None, None, "invalid JSON")
    assert told[1][1].text is None
    assert "picture 1" in told[1][1].fault


def test_a_prompt_without_room_in_the_cache_is_a_fault_of_its_own(engine, processor, monkeypatch):
    monkeypatch.setattr(engine, "_cache_bytes", 150 * token_bytes(engine.config, np.float32))
    long = Problem("long", "How long is AB? " * 20, (PICTURE,), "")
    told = ask(
        engine,
        processor,
        [PROBLEMS[0], long, PROBLEMS[1]],
        bucket_of=lambda prompt: (80 if len(prompt.tokens) <= 80 else 160, 2),
    )
    assert [name for name, _ in told] == ["long", "a", "b"]
    assert told[0][1].text is None
    assert "12 tokens to a prompt of 160 needs room in the cache for 182 tokens" in told[0][1].fault
    assert all(len(said.token_ids) == 12 for _, said in told[1:])


def test_numbers_that_are_not_finite_are_a_fault(engine, processor):
    """Only the first prompt has the token whose embedding is damaged."""
    sound, params = dict(ask(engine, processor, PROBLEMS[:2])), init_params(engine.config, jax.random.key(0))
    first, second = (processor.prompt(problem).tokens.tolist() for problem in PROBLEMS[:2])
    damaged = params["decoder"]["embed"]["embedding"].at[min(set(first) - set(second))].set(np.nan)
    try:
        engine.load(params | {"decoder": params["decoder"] | {"embed": {"embedding": damaged}}})
        told = dict(ask(engine, processor, PROBLEMS[:2]))
    finally:
        engine.load(params)
    assert told["a"] == Reply(None, None, "the model's numbers are not finite")
    assert told["b"] == sound["b"]
