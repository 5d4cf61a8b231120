"""Floating-point operations that a result needs: those of products with weights and of attention, two a multiply-add.

What a program does beyond that (padding, parts computed twice, one prompt in many rows) is not in here, so the ratio
of these to what a device could do in the time is its model FLOPs utilisation (arXiv 2204.02311, appendix B).
"""

from __future__ import annotations

from perception_r1_jax.models import ModelConfig, VisionConfig
from perception_r1_jax.records import MERGE_UNIT, WINDOW_PATCHES


def layers_flops(model: ModelConfig, tokens: int | float, pairs: int | float) -> float:
    """Of the decoder's layers for so many tokens, and so many pairs of a token and one that it attends to."""
    heads = model.num_heads * model.head_dim
    keys = 2 * model.num_kv_heads * model.head_dim
    weights = model.hidden_size * (2 * heads + keys + 3 * model.intermediate_size)
    return model.num_layers * (2.0 * weights * tokens + 4.0 * heads * pairs)


def head_flops(model: ModelConfig, positions: int | float) -> float:
    """Of the logits of so many positions."""
    return 2.0 * model.vocab_size * model.hidden_size * positions


def patches_flops(
    vision: VisionConfig, patches: int | float, window_pairs: int | float, picture_pairs: int | float
) -> float:
    """Of the vision tower for so many patches, with the pairs of two in one window and of two in one picture."""
    hidden, wide = vision.hidden_size, vision.hidden_size * MERGE_UNIT
    weights = vision.depth * hidden * (4 * hidden + 3 * vision.intermediate_size)
    merger = wide * (wide + vision.out_hidden_size) / MERGE_UNIT
    full = len(vision.full_attention_layers)
    pairs = (vision.depth - full) * window_pairs + full * picture_pairs
    return 2.0 * patches * (weights + vision.patch_dim * hidden + merger) + 4 * hidden * pairs


def vision_flops(vision: VisionConfig, windows: int, pictures: int) -> float:
    """Of pictures of so many full windows each."""
    patches = windows * WINDOW_PATCHES
    return pictures * patches_flops(vision, patches, patches * WINDOW_PATCHES, patches**2)


def prompt_flops(model: ModelConfig, length: int, prompts: int) -> float:
    """Of running prompts, without their pictures and logits."""
    return layers_flops(model, prompts * length, prompts * length**2 / 2)


def response_flops(model: ModelConfig, length: int, tokens: int, responses: int) -> float:
    """Of running responses after a prompt of so many tokens, with the logits of each of their tokens."""
    rows = responses * tokens
    return layers_flops(model, rows, rows * (length + tokens / 2)) + head_flops(model, rows)
