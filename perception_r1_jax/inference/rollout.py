"""Rollouts: G responses of the current policy to each prompt of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Key
from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.engine import Engine, ignore_progress
from perception_r1_jax.inference.generation import FinishedGroups
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.models import ModelConfig
from perception_r1_jax.processing import Processor, batch_prompts, pick_bucket, pick_buckets
from perception_r1_jax.records import FINISH_LENGTH, FINISH_STOP, Prompt, PromptBatch, Rollout


def make_sampling(config: ConfigDict, processor: Processor) -> Sampling:
    """How a run draws its responses; `config` is `config.rollout`.

    No repetition penalty is set: it would draw from other probabilities than those of the policy, which training takes.
    """
    return Sampling(
        max_new_tokens=config.response_buckets[-1],
        stop_ids=processor.stop_ids,
        pad_id=processor.pad_id,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        banned_ids=processor.banned_ids,
        min_new_tokens=config.min_new_tokens,
        stop_strings=config.stop_strings,
    )


def check_stop_strings(config: ConfigDict, processor: Processor) -> None:
    """Raises UserError for a stop string that no text has: one with a special token, which decoding leaves out."""
    added = processor.tokenizer.added_tokens_encoder
    special = [token for token, index in added.items() if not processor.decode([index])]
    for string in config.stop_strings:
        if found := [token for token in special if token in string]:
            raise UserError(
                f"config.rollout.stop_strings has {string!r}, and {found[0]} is a special token of the model: no "
                "response's text has one, so it would end none. Leave it out; where the token is to end responses, "
                "name its id in eos_token_id of the model's generation_config.json."
            )


def bucketed_batch(prompts: Sequence[Prompt], processor: Processor, config: ConfigDict) -> PromptBatch:
    """The prompts of a step in the smallest bucket (L, W) of `config.rollout` that holds them."""
    length, windows = pick_buckets(prompts, config.prompt_buckets, config.window_buckets)
    return batch_prompts(prompts, rows=len(prompts), length=length, windows=windows, pad_id=processor.pad_id)


def make_engine(
    model: ModelConfig, mesh: Mesh, dtype: DTypeLike, config: ConfigDict, memory: int | None = None
) -> Engine:
    """The engine of a run's rollouts, without parameters yet; `config` is `config.rollout`, `memory` as of `Engine`."""
    return Engine(
        model,
        None,
        mesh,
        dtype=dtype,
        slots=config.slots,
        weights_memory=config.weights_memory,
        cache_memory=config.cache_memory,
        cache_int8=config.cache_int8,
        memory=memory,
    )


def roll_out(
    engine: Engine,
    processor: Processor,
    batch: PromptBatch,
    config: ConfigDict,
    key: Key[Array, ""],
    on_progress: Callable[[int], None] = ignore_progress,
    on_groups: Callable[[list[int], list[list[str]]], None] = ignore_progress,
) -> Rollout:
    """Draws `config.samples_per_prompt` responses to each prompt, in the smallest bucket that holds the longest.

    Args:
        engine: holds the policy's parameters.
        processor: the policy's.
        batch: N prompts.
        config: `config.rollout`.
        key: of this step; samples fold in their prompt's id, number and position.
        on_progress: as of `Engine.generate`: what it raises ends the rollout.
        on_groups: called likewise with rows of the batch and their texts [n][G], once all G responses are there.
    """
    texts: dict[int, list[str]] = {}

    def take(groups: FinishedGroups) -> None:
        said = [[processor.decode(t[m]) for t, m in zip(*group)] for group in zip(groups.tokens, groups.mask)]
        texts.update(zip(groups.rows, said))
        on_groups(groups.rows, said)

    out = engine.generate(
        batch,
        config.samples_per_prompt,
        make_sampling(config, processor),
        key,
        decode=processor.decode,
        on_progress=on_progress,
        on_groups=take,
    )
    size = pick_bucket(int(out.mask.sum(-1).max()), config.response_buckets, "longest response")
    return Rollout(
        tokens=out.tokens[:, :, :size],
        mask=out.mask[:, :, :size],
        logps=out.logps[:, :, :size],
        finish_reasons=[[FINISH_STOP if stop else FINISH_LENGTH for stop in row] for row in out.stopped],
        texts=[texts[row] for row in range(len(texts))],
        stats=out.stats,
    )


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Lengths in tokens, the share of responses cut at the limit, and what drawing them took."""
    lengths = rollout.mask.sum(-1)
    cut = np.array(rollout.finish_reasons) == FINISH_LENGTH
    return {
        "rollout/length_mean": float(lengths.mean()),
        "rollout/length_max": float(lengths.max()),
        "rollout/cut_share": float(cut.mean()),
        "rollout/tokens": float(lengths.sum()),
        **({f"rollout/{name}": value for name, value in rollout.stats.metrics().items()} if rollout.stats else {}),
    }
