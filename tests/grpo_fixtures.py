"""A run config and a batch of made-up rollouts for the tiny model, shared by the tests of grpo and training."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perception_r1_jax.records import PromptBatch, TrainBatch
from perception_r1_jax.sharding import make_mesh
from tests import tiny

BANNED = (tiny.CONFIG.image_token_id, tiny.CONFIG.video_token_id, tiny.CONFIG.vision_start_token_id)


def run_config(**overrides) -> ConfigDict:
    """The fields that the step and the optimizer read; `overrides` by dotted name with `__` for the dot."""
    config = ConfigDict(
        {
            "fidelity": "default",
            "steps": 10,
            "model": {"dtype": "float32", "remat": "none", "attention": "xla", "freeze_vision": False},
            "lora": {"modules": (), "rank": 2, "alpha": 3.0},
            "rollout": {
                "prompts_per_step": 8,
                "samples_per_prompt": 4,
                "temperature": 0.9,
                "prompt_buckets": (16, 24, 32),
                "window_buckets": (0, 1, 2),
                "response_buckets": (3, 6, 8),
            },
            "grpo": {
                "advantages": "grpo",
                "loss": "clipped",
                "clip_low": 0.2,
                "clip_high": 0.3,
                "dual_clip": 3.0,
                "aggregation": "sequence_mean",
                "importance_cap": 0.0,
                "kl_coefficient": 0.01,
                "kl_estimator": "k3",
                "kl_in": "loss",
                "kl_schedule": "fixed",
                "kl_target": 0.01,
                "kl_final": 0.0,
                "entropy_coefficient": 0.0,
                "mask_truncated": False,
                "drop_flat_groups": False,
                "updates_per_batch": 1,
                "micro_batch_prompts": 8,
                "micro_batch_samples": 4,
                "log_prob_chunk": 4,
            },
            "optimizer": {
                "name": "adamw",
                "learning_rate": 1e-2,
                "schedule": "constant",
                "warmup_fraction": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-3,
                "weight_decay": 1e-2,
                "max_grad_norm": 1.0,
                "moments_dtype": "float32",
                "host_memory": False,
            },
        }
    )
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in overrides.items()})
    return config


def one_device_mesh() -> Mesh:
    """A mesh of a single device."""
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def make_prompts(extra_length: int = 0) -> PromptBatch:
    """7 prompts of a picture and some text, and one row that only fills the batch; 24 tokens and more padding."""
    prompts = tiny.prompt_batch([24, 21, 19, 23, 18, 20, 22, 0], [1] * 7 + [0], windows=1)
    return dataclasses.replace(
        prompts,
        tokens=_grow(prompts.tokens, extra_length, tiny.PAD_ID),
        positions=_grow(prompts.positions, extra_length, 0),
        image_slots=_grow(prompts.image_slots, extra_length, -1),
    )


def make_batch(extra_length: int = 0, extra_response: int = 0, **optional) -> TrainBatch:
    """8 groups of 4 responses of 1 to 6 tokens, padded further on request; one is invalid, the last group filler."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 7, (8, 4))
    lengths[1, 2] = 0
    lengths[7] = 0
    tokens = rng.integers(0, 89, (8, 4, 6)).astype(np.int32)
    mask = np.arange(6) < lengths[..., None]
    return TrainBatch(
        prompts=make_prompts(extra_length),
        responses=_grow(np.where(mask, tokens, tiny.PAD_ID), extra_response, tiny.PAD_ID),
        mask=_grow(mask, extra_response, False),
        advantages=rng.normal(size=(8, 4)).astype(np.float32) * (lengths > 0),
        **optional,
    )


def _grow(x, extra, value):
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, extra)], constant_values=value)


def relative_difference(a, b) -> float:
    """Largest over the leaves of |a - b| / |b| by norm."""

    def difference(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-12)

    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))
