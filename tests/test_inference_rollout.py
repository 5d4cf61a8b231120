"""Rollouts: which bucket, what is trimmed, what the texts hold; with an engine that says what a test wants."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.errors import UserError
from perception_r1_jax.inference import Engine, Generated
from perception_r1_jax.inference.generation import FinishedGroups
from perception_r1_jax.inference.rollout import (
    bucketed_batch,
    check_stop_strings,
    make_sampling,
    roll_out,
    rollout_metrics,
)
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.models import init_params, load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.processing.tokenizer import load_tokenizer
from perception_r1_jax.records import Problem
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests import parity

KEY = jax.random.key(0)
STATS = GenerationStats(1.0, 2.0, 4.0, 1.0, tokens=40, decoded=30, steps=40, preempted=1, cache_bytes=2**29)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("rollout"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def processor(model_dir) -> Processor:
    return Processor.from_directory(model_dir)


@pytest.fixture
def config():
    """Two prompts of 3 responses each at most 12 tokens."""
    rollout = default_config().rollout
    rollout.prompts_per_step, rollout.samples_per_prompt = 2, 3
    rollout.prompt_buckets, rollout.window_buckets, rollout.response_buckets = (64, 80, 128), (0, 2, 8), (4, 8, 12)
    return rollout


def prompts(processor: Processor, *pictures: tuple[int, int]) -> list:
    """A prompt with a picture of each size; one of text alone where the size is (0, 0)."""
    problems = [
        Problem(f"p{i}", "How long is AB?", (parity.drawing(*size, i),) if all(size) else (), "")
        for i, size in enumerate(pictures)
    ]
    return [processor.prompt(problem) for problem in problems]


class ScriptedEngine(Engine):
    """Answers with the given token ids, [N][G] lists; a response is stopped where it ends with a stop id."""

    def __init__(self, answers):
        self.answers = answers

    def generate(self, prompts, samples, sampling, key, *, decode, on_progress, on_groups) -> Generated:
        self.asked = (prompts, samples, sampling, key)
        on_progress(0)
        shape = (len(self.answers), samples, sampling.max_new_tokens)
        tokens, mask = np.full(shape, sampling.pad_id, np.int32), np.zeros(shape, bool)
        for row, group in enumerate(self.answers):
            for sample, answer in enumerate(group):
                tokens[row, sample, : len(answer)], mask[row, sample, : len(answer)] = answer, True
        stopped = np.array([[answer[-1] in sampling.stop_ids for answer in group] for group in self.answers])
        logps = np.where(mask, -0.5, 0).astype(np.float32)
        for rows in ([1], [0]):
            on_groups(FinishedGroups(rows, tokens[rows], mask[rows], logps[rows], stopped[rows]))
        return Generated(tokens, mask, logps, stopped, STATS)


def say(processor: Processor, text: str, *, stop: int | None = None) -> list[int]:
    return processor.chat.encode_text(text) + ([] if stop is None else [processor.stop_ids[stop]])


def scripted(processor: Processor, config, longest: int = 6):
    """A rollout in which one response has `longest` tokens and the others fewer."""
    long = (say(processor, "AB is 5. " * longest))[:longest]
    answers = [[say(processor, "5", stop=0), long, say(processor, "5", stop=1)], [say(processor, "x", stop=0)] * 3]
    engine = ScriptedEngine(answers)
    batch = bucketed_batch(prompts(processor, (56, 56), (0, 0)), processor, config)
    return engine, batch, roll_out(engine, processor, batch, config, KEY)


@pytest.mark.parametrize(("longest", "size"), [(3, 4), (4, 4), (5, 8), (12, 12)])
def test_responses_are_trimmed_to_the_smallest_bucket_that_holds_the_longest(processor, config, longest, size):
    _, _, rollout = scripted(processor, config, longest)
    assert rollout.tokens.shape == rollout.mask.shape == rollout.logps.shape == (2, 3, size)
    assert rollout.mask[0, 1].sum() == longest
    np.testing.assert_array_equal(rollout.logps, np.where(rollout.mask, np.float32(-0.5), 0))
    assert (rollout.tokens[~rollout.mask] == processor.pad_id).all()


def test_texts_and_finish_reasons(processor, config):
    _, _, rollout = scripted(processor, config)
    assert rollout.texts[0][0] == rollout.texts[0][2] == "5"
    assert rollout.texts[0][1] == processor.decode(rollout.tokens[0, 1, :6]) != ""
    assert rollout.texts[1] == ["x"] * 3
    assert rollout.finish_reasons == [["stop", "length", "stop"], ["stop", "stop", "stop"]]


def test_the_engine_is_asked_for_a_group_under_the_config_s_sampling(processor, config):
    config.temperature, config.top_p, config.top_k = 0.7, 0.9, 40
    config.min_p, config.min_new_tokens, config.stop_strings = 0.1, 3, ("</answer>",)
    engine, batch, _ = scripted(processor, config)
    asked, samples, sampling, key = engine.asked
    assert asked is batch
    assert samples == 3
    assert key is KEY
    assert sampling == make_sampling(config, processor)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_new_tokens) == (0.7, 0.9, 40, 12)
    assert (sampling.min_p, sampling.min_new_tokens, sampling.stop_strings) == (0.1, 3, ("</answer>",))
    assert sampling.repetition_penalty == 1
    assert sampling.stop_ids == processor.stop_ids
    assert sampling.banned_ids == processor.banned_ids
    assert len(sampling.banned_ids) == 5


@pytest.mark.parametrize(
    ("pictures", "windows"),
    [([(0, 0), (0, 0)], 0), ([(56, 56), (0, 0)], 2), ([(112, 112), (140, 56)], 2), ([(112, 112), (140, 140)], 8)],
)
def test_prompts_go_to_the_smallest_bucket_that_holds_all(processor, config, pictures, windows):
    made = prompts(processor, *pictures)
    batch = bucketed_batch(made, processor, config)
    longest = max(len(prompt.tokens) for prompt in made)
    length = min(size for size in config.prompt_buckets if size >= longest)
    assert batch.tokens.shape == (2, length)
    assert batch.patches.shape[:2] == (2, windows)


def test_a_prompt_above_every_bucket_is_named(processor, config):
    config.prompt_buckets = (8, 16)
    with pytest.raises(ValueError, match=r"prompt 'p0' \(tokens\): size \d+ is above the largest bucket 16"):
        bucketed_batch(prompts(processor, (56, 56), (0, 0)), processor, config)


def test_a_stop_string_that_no_text_has_is_refused(processor, config, shared_data):
    qwen = load_tokenizer(shared_data / "qwen2_5_vl_tokenizer", 152_064)
    processor = dataclasses.replace(processor, tokenizer=qwen)
    for string in ("<|im_end|>", "The end.<|endoftext|>"):
        config.stop_strings = ("</answer>", string)
        with pytest.raises(UserError, match=r"stop_strings has '.*<\|\w+\|>', and <\|\w+\|> is a special token"):
            check_stop_strings(config, processor)
    config.stop_strings = ("</answer>", "<tool_call>", "<|")  # <tool_call> is an added token, but text
    check_stop_strings(config, processor)


def test_metrics(processor, config):
    _, _, rollout = scripted(processor, config, longest=12)
    lengths = rollout.mask.sum(-1)
    assert rollout_metrics(rollout) == {
        "rollout/length_mean": pytest.approx(lengths.mean()),
        "rollout/length_max": 12.0,
        "rollout/cut_share": pytest.approx(1 / 6),
        "rollout/tokens": float(lengths.sum()),
        "rollout/vision_seconds": 1.0,
        "rollout/prefill_seconds": 2.0,
        "rollout/decode_seconds": 4.0,
        "rollout/host_seconds": 1.0,
        "rollout/tokens_per_second": 5.0,
        "rollout/slot_utilisation": 0.75,
        "rollout/preempted": 1.0,
        "rollout/cache_gib": 0.5,
    }


def test_with_a_real_engine(model_dir, processor, config):
    model = load_config(model_dir)
    engine = Engine(model, init_params(model, KEY), make_mesh())
    batch = bucketed_batch(prompts(processor, (56, 56), (0, 0)), processor, config)
    rollout = roll_out(engine, processor, batch, config, KEY)
    assert rollout.tokens.shape == (2, 3, 12)
    assert len({tuple(row) for row in rollout.tokens.reshape(6, 12)}) == 6, "every sample is a draw of its own"
    assert not np.isin(rollout.tokens[rollout.mask], processor.banned_ids).any()
    assert (rollout.logps[rollout.mask] < 0).all()
    assert rollout.finish_reasons == [["length"] * 3] * 2
