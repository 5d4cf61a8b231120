"""A model and prompts of a few numbers, shared by the tests so that they share compilations too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from perception_r1_jax.models import ModelConfig, Params, VisionConfig, abstract_params
from perception_r1_jax.records import WINDOW_PATCHES, WINDOW_TOKENS, PromptBatch

IMAGE_ID, STOP_ID, PAD_ID = 90, 91, 92

CONFIG = ModelConfig(
    model_type="qwen2_5_vl",
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=False,
    mrope_section=(1, 1, 2),
    vision=VisionConfig(
        depth=2, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=32, full_attention_layers=(1,)
    ),
    image_token_id=IMAGE_ID,
    video_token_id=93,
    vision_start_token_id=94,
    vision_end_token_id=95,
    vision_pad_token_id=89,
)


@functools.cache
def params(scale: float = 8.0) -> Params:
    """Random parameters: matrices `scale` times the usual 0.02, random biases and norms."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key in ("kernel", "embedding"):
            return jnp.asarray(0.02 * scale * noise)
        return jnp.asarray((path[-1].key == "scale") + np.float32(0.3) * noise)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(CONFIG))


def prompt_batch(lengths: list[int], pictures: list[int], *, length: int = 24, windows: int = 2, seed: int = 0):
    """Prompts of random text; `pictures[i]` of the windows of prompt i are filled, as a picture each.

    The image tokens, 16 a window, stand from token 1 on, so a prompt with p pictures has more than 16 p tokens.
    """
    rng = np.random.default_rng(seed)
    n = len(lengths)
    tokens = rng.integers(0, IMAGE_ID - 2, (n, length)).astype(np.int32)
    slots = np.full((n, length), -1, np.int32)
    valid = np.zeros((n, windows, WINDOW_PATCHES), bool)
    image_ids = np.full((n, windows), -1, np.int32)
    for row, (size, count) in enumerate(zip(lengths, pictures)):
        image_tokens = np.arange(count * WINDOW_TOKENS)
        slots[row, 1 + image_tokens] = image_tokens
        tokens[row, 1 + image_tokens] = IMAGE_ID
        tokens[row, size:] = PAD_ID
        valid[row, :count] = True
        image_ids[row, :count] = np.arange(count)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(WINDOW_PATCHES, 2)
    patches = rng.normal(size=(n, windows, WINDOW_PATCHES, CONFIG.vision.patch_dim)).astype(np.float32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (n, 3, length)).copy()
    positions[:, 1] += slots >= 0  # the three axes must differ somewhere
    return PromptBatch(
        tokens=tokens,
        lengths=np.asarray(lengths, np.int32),
        positions=positions,
        next_position=np.asarray(lengths, np.int32) + 1,
        image_slots=slots,
        prompt_ids=np.arange(n, dtype=np.uint32) + 1000,
        patches=patches * valid[..., None],
        patch_positions=np.broadcast_to(grid.astype(np.int32), (n, windows, WINDOW_PATCHES, 2)).copy(),
        patch_valid=valid,
        image_ids=image_ids,
    )


def rows(batch: PromptBatch, index) -> PromptBatch:
    """Copies of the batch's rows at these indices."""
    return jax.tree.map(lambda x: x[np.asarray(index)], batch)
