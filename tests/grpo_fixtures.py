"""A tiny Qwen2.5-VL, a run config and a batch of made-up rollouts, shared by the tests of grpo and training."""

from __future__ import annotations

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from perception_r1_jax.models import ModelConfig, VisionConfig, init_params
from perception_r1_jax.records import PromptBatch, TrainBatch
from perception_r1_jax.sharding import make_mesh

IMAGE_TOKEN, PAD = 90, 0
BANNED = (90, 91, 92)

MODEL = ModelConfig(
    model_type="qwen2_5_vl",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=False,
    mrope_section=(2, 1, 1),
    vision=VisionConfig(
        depth=2, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32, full_attention_layers=(1,)
    ),
    image_token_id=IMAGE_TOKEN,
)


def run_config(**overrides) -> ConfigDict:
    """The fields that the step and the optimizer read; `overrides` by dotted name with `__` for the dot."""
    config = ConfigDict(
        {
            "fidelity": "default",
            "model": {"dtype": "float32", "remat": "none", "freeze_vision": False},
            "rollout": {
                "prompts_per_step": 8,
                "samples_per_prompt": 4,
                "temperature": 0.9,
                "max_response_tokens": 6,
            },
            "grpo": {
                "clip_low": 0.2,
                "clip_high": 0.3,
                "dual_clip": 3.0,
                "aggregation": "sequence_mean",
                "kl_coefficient": 0.0,
                "kl_estimator": "k3",
                "micro_batch_prompts": 8,
                "micro_batch_samples": 4,
                "log_prob_chunk": 4,
            },
            "optimizer": {
                "learning_rate": 1e-2,
                "warmup_fraction": 0.0,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-3,
                "weight_decay": 1e-2,
                "max_grad_norm": 1.0,
            },
        }
    )
    with config.unlocked():
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in overrides.items()})
    return config


@functools.cache
def tiny_params():
    """Parameters with matrices large enough for every part to matter."""
    params = jax.jit(lambda key: init_params(MODEL, key))(jax.random.key(0))
    scale = lambda path, x: np.asarray(x) * (4 if path[-1].key in ("kernel", "embedding") else 1)  # noqa: E731
    return jax.tree_util.tree_map_with_path(scale, params)


def one_device_mesh():
    """A mesh of a single device."""
    return make_mesh(1, 1, 1, devices=jax.devices()[:1])


def make_prompts(count: int = 8, length: int = 24, fillers: int = 1, seed: int = 0) -> PromptBatch:
    """Prompts of one picture (16 image tokens) and some text; the last `fillers` rows are empty."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(19, 23, count).astype(np.int32)
    lengths[count - fillers :] = 0
    inside = np.arange(length)[None] < lengths[:, None]
    tokens = np.where(inside, rng.integers(1, 90, (count, length)), PAD).astype(np.int32)
    tokens[:, 2:18] = np.where(inside[:, 2:18], IMAGE_TOKEN, PAD)
    slots = np.full((count, length), -1, np.int32)
    slots[:, 2:18] = np.where(inside[:, 2:18], np.arange(16), -1)
    real = lengths > 0
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(64, 2)
    return PromptBatch(
        tokens=tokens,
        lengths=lengths,
        positions=_positions(length, count),
        next_position=np.where(real, lengths - 12, 0).astype(np.int32),
        image_slots=slots,
        prompt_ids=np.arange(count, dtype=np.uint32),
        patches=rng.normal(size=(count, 1, 64, 1176)).astype(np.float32) * real[:, None, None, None],
        patch_positions=np.broadcast_to(grid, (count, 1, 64, 2)).astype(np.int32),
        patch_valid=np.broadcast_to(real[:, None, None], (count, 1, 64)).copy(),
        image_ids=np.where(real, 0, -1)[:, None].astype(np.int32),
    )


def make_batch(length: int = 24, response_length: int = 6, seed: int = 0, **optional) -> TrainBatch:
    """8 groups of 4 responses of 1 to 6 tokens; one response is invalid and the last group is filler."""
    prompts = make_prompts(length=length, seed=seed)
    rng = np.random.default_rng(seed + 1)
    lengths = rng.integers(1, 7, (8, 4))
    lengths[1, 2] = 0
    lengths[prompts.lengths == 0] = 0
    tokens = rng.integers(1, 90, (8, 4, 6)).astype(np.int32)
    advantages = rng.normal(size=(8, 4)).astype(np.float32) * (lengths > 0)
    mask = np.arange(6) < lengths[..., None]
    grow = [(0, 0), (0, 0), (0, response_length - 6)]
    return TrainBatch(
        prompts=prompts,
        responses=np.pad(np.where(mask, tokens, PAD), grow),
        mask=np.pad(mask, grow),
        advantages=advantages,
        **optional,
    )


def relative_difference(a, b) -> float:
    """Largest over the leaves of |a - b| / |b| by norm."""

    def difference(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-12)

    return max(jax.tree.leaves(jax.tree.map(difference, a, b)))


def _positions(length, count):
    """Text, a 4 x 4 picture at tokens 2..17, text: temporal, height and width positions."""
    one = np.concatenate([np.arange(2), np.full(16, 2), np.arange(6, 6 + length - 18)])
    positions = np.stack([one] * 3)
    positions[1, 2:18] += np.arange(16) // 4
    positions[2, 2:18] += np.arange(16) % 4
    return np.broadcast_to(positions, (count, 3, length)).astype(np.int32)
