"""Shapes of what a run feeds its programs, at the largest buckets of its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from perception_r1_jax.grpo.kl import has_kl
from perception_r1_jax.inference.choices import Between
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.judge.answers import LEAST_DIGITS
from perception_r1_jax.judge.pictures import load_any_prompt
from perception_r1_jax.models import ModelConfig
from perception_r1_jax.processing import bucket_size
from perception_r1_jax.records import WINDOW_PATCHES, PromptBatch, TrainBatch

PAD_ID, STOP_IDS = 0, (1, 2)
CHOICE_IDS = (3, 4)
"""Which ids a tokenizer has for these does not change what a program takes."""

CHARACTERS_A_TOKEN = 3
"""Of an instruction, about; its tokenizer need not be there."""

VERDICT_TOKENS = 9
"""Of a verdict with its markup, the digit included, as Qwen2's tokenizer cuts it."""


def banned_ids(model: ModelConfig) -> tuple[int, ...]:
    """The ids that sampling bans, as many as the processor finds."""
    return tuple(range(5, 10)) if model.vision else ()


def prompt_shapes(model: ModelConfig, rows: int, length: int, windows: int) -> PromptBatch:
    """Shapes of a batch of prompts (`jax.ShapeDtypeStruct`), as `processing.batch_prompts` makes them."""
    patch = model.vision.patch_dim if model.vision else 0
    windows = windows if model.vision else 0
    return PromptBatch(
        tokens=_int(rows, length),
        lengths=_int(rows),
        positions=_int(rows, 3, length),
        next_position=_int(rows),
        image_slots=_int(rows, length),
        prompt_ids=_of(jnp.uint32, rows),
        patches=_of(jnp.float32, rows, windows, WINDOW_PATCHES, patch),
        patch_positions=_int(rows, windows, WINDOW_PATCHES, 2),
        patch_valid=_of(jnp.bool_, rows, windows, WINDOW_PATCHES),
        image_ids=_int(rows, windows),
    )


def run_prompts(config: ConfigDict, model: ModelConfig) -> PromptBatch:
    """Those of a step."""
    rollout = config.rollout
    return prompt_shapes(model, rollout.prompts_per_step, rollout.prompt_buckets[-1], rollout.window_buckets[-1])


def micro_batches(config: ConfigDict) -> int:
    """How many a step has, of all updates together, where every response is of the largest bucket."""
    rollout, grpo = config.rollout, config.grpo
    responses = rollout.prompts_per_step * rollout.samples_per_prompt
    return responses // (grpo.micro_batch_prompts * grpo.micro_batch_samples)


def micro_batch(config: ConfigDict, model: ModelConfig) -> TrainBatch:
    """What goes through the model at a time in an update."""
    rollout, grpo = config.rollout, config.grpo
    rows, length, windows = grpo.micro_batch_prompts, rollout.prompt_buckets[-1], rollout.window_buckets[-1]
    shape = (rows, grpo.micro_batch_samples, rollout.response_buckets[-1])
    logps = _of(jnp.float32, *shape)
    return TrainBatch(
        prompts=prompt_shapes(model, rows, length, windows),
        responses=_int(*shape),
        mask=_of(jnp.bool_, *shape),
        advantages=_of(jnp.float32, *shape[:2]),
        old_logps=logps if grpo.updates_per_batch > 1 else None,
        reference_logps=logps if has_kl(grpo) else None,
        rollout_logps=logps,
    )


def micro_batch_weights(config: ConfigDict) -> Any:
    """The weights of its tokens."""
    grpo = config.grpo
    return _of(jnp.float32, grpo.micro_batch_prompts, grpo.micro_batch_samples, config.rollout.response_buckets[-1])


def run_sampling(config: ConfigDict, model: ModelConfig) -> Sampling:
    """How a run draws, as `inference.rollout.make_sampling` makes it."""
    rollout = config.rollout
    return Sampling(
        max_new_tokens=rollout.response_buckets[-1],
        stop_ids=STOP_IDS,
        pad_id=PAD_ID,
        temperature=rollout.temperature,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
        banned_ids=banned_ids(model),
        min_new_tokens=rollout.min_new_tokens,
        stop_strings=rollout.stop_strings,
    )


def greedy(model: ModelConfig, new_tokens: int) -> Sampling:
    """How judge and evaluation answer."""
    return Sampling(
        max_new_tokens=new_tokens, stop_ids=STOP_IDS, pad_id=PAD_ID, temperature=0.0, banned_ids=banned_ids(model)
    )


def judge_prefix_tokens(config: ConfigDict) -> int:
    """About how many tokens all requests of the judge begin with; 0 where the limit of a prompt has no room for them.

    Of a prompt file that is not there the package's own stands in.
    """
    path = config.judge.prompt
    instruction = load_any_prompt(path if Path(path).is_file() else "", sees=config.judge.sees).system
    tokens = len(instruction) // CHARACTERS_A_TOKEN
    return tokens if tokens < config.judge.max_prompt_tokens else 0


def between_verdicts(new_tokens: int) -> Between:
    """Shapes of the text between as many verdicts as an answer of so many tokens has."""
    count = bucket_size(max(new_tokens // VERDICT_TOKENS, 1), smallest=LEAST_DIGITS)
    return Between(_int(count - 1, VERDICT_TOKENS - 1), _int(count - 1))


def _int(*shape: int) -> Any:
    return _of(jnp.int32, *shape)


def _of(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
