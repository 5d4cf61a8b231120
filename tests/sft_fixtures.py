"""Examples for the tiny model, alone and packed, and a run's config, shared by the tests of supervised training."""

from __future__ import annotations

import functools

import numpy as np
from ml_collections import ConfigDict

from perception_r1_jax.processing import pack_rows
from perception_r1_jax.records import WINDOW_PATCHES, WINDOW_TOKENS, Example, PackedBatch, VisionLayout
from tests import tiny
from tests.grpo_fixtures import run_config

TOKENS, WINDOWS = 48, 2
ROOM = {"tokens": TOKENS, "windows": WINDOWS, "patch_size": tiny.CONFIG.vision.patch_dim, "pad_id": tiny.PAD_ID}


def example(name: str, prompt: int, response: int, pictures: int = 0, seed: int = 0) -> Example:
    """A prompt of text after so many one-window pictures, and a response."""
    rng = np.random.default_rng([seed, prompt, response])
    image_tokens = pictures * WINDOW_TOKENS
    length = image_tokens + prompt + response
    tokens = rng.integers(0, tiny.IMAGE_ID - 2, length).astype(np.int32)
    tokens[:image_tokens] = tiny.IMAGE_ID
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (3, length)).copy()
    positions[1, :image_tokens] += 1  # the axes must differ somewhere
    slots = np.where(np.arange(length) < image_tokens, np.arange(length), -1).astype(np.int32)
    return Example(name, tokens, positions, slots, np.arange(length) >= image_tokens + prompt, _vision(pictures, rng))


def _vision(pictures: int, rng: np.random.Generator) -> VisionLayout:
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(1, WINDOW_PATCHES, 2)
    return VisionLayout(
        patches=rng.normal(size=(pictures, WINDOW_PATCHES, tiny.CONFIG.vision.patch_dim)).astype(np.float32),
        patch_positions=np.repeat(grid.astype(np.int32), pictures, axis=0),
        patch_valid=np.ones((pictures, WINDOW_PATCHES), bool),
        image_ids=np.arange(pictures, dtype=np.int32),
        token_slots=np.arange(pictures * WINDOW_TOKENS, dtype=np.int32),
    )


@functools.cache
def examples() -> tuple[Example, ...]:
    """With a picture, without, with two; responses of unlike length."""
    return (
        example("a", 3, 4, pictures=1),
        example("b", 5, 6),
        example("c", 2, 5, pictures=1, seed=1),
        example("d", 2, 3, pictures=2),
        example("e", 4, 9),
        example("f", 6, 2),
    )


def packed() -> PackedBatch:
    """The examples in four rows: two segments with a picture in the first, one with two pictures in the second."""
    a, b, c, d, e, f = examples()
    return pack_rows([[a, c], [d], [e, f, b], [b]], **ROOM)


def apart() -> PackedBatch:
    """The same examples, each in a row of its own."""
    a, b, c, d, e, f = examples()
    return pack_rows([[a], [c], [d], [e], [f], [b], [b], []], **ROOM)


def sft_run_config(**overrides) -> ConfigDict:
    """The fields that the step reads; `overrides` by dotted name with `__` for the dot."""
    config = run_config()
    with config.unlocked():
        config.sft = ConfigDict({"micro_batch_rows": 4, "log_prob_chunk": 16})
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in overrides.items()})
    return config
