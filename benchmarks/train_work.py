"""What a step works on: its sizes, a config and a batch of random responses to prompts with a picture each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks import workload
from perception_r1_jax.config import default_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import TrainBatch


class Work(NamedTuple):
    """What a step works on: prompts, responses to each, tokens of a response, pixels of a picture's sides."""

    prompts: int
    samples: int
    new_tokens: int
    side: int


def make_config(work: Work) -> ConfigDict:
    """The run that a step is taken of: in float32, a prompt with all of its responses at a time."""
    config = default_config()
    config.steps = 100
    config.model.dtype, config.model.remat = "float32", "none"
    config.rollout.prompts_per_step, config.rollout.samples_per_prompt = work.prompts, work.samples
    config.rollout.response_buckets = (work.new_tokens,)
    config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples = 1, work.samples
    config.grpo.log_prob_chunk = work.samples * work.new_tokens
    return config


def make_batch(processor: Processor, work: Work) -> TrainBatch:
    """All responses of full length."""
    prompts = workload.picture_prompts(processor, work.prompts, work.side)
    responses, advantages = draw(processor, work)
    return TrainBatch(workload.pack(processor, prompts), responses, np.ones(responses.shape, bool), advantages)


def draw(processor: Processor, work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Responses [N, G, C] of random tokens, none of them special, and advantages [N, G]."""
    rng = np.random.default_rng(1)
    shape = (work.prompts, work.samples, work.new_tokens)
    ordinary = min(processor.tokenizer.added_tokens_decoder)
    return rng.integers(0, ordinary, shape, np.int32), rng.normal(size=shape[:2]).astype(np.float32)
