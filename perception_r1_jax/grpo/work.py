"""Floating-point operations of a forward pass over a batch: those that it needs, and those that its rows make of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool
from ml_collections import ConfigDict

from perception_r1_jax.grpo.micro_batches import MicroBatch
from perception_r1_jax.models import ModelConfig, flops
from perception_r1_jax.models.lora import VISION_MODULES
from perception_r1_jax.records import PromptBatch, TrainBatch


class Work(NamedTuple):
    """Operations of a forward pass.

    Attributes:
        text: of the decoder and the logits.
        vision: of the vision tower.
    """

    text: float
    vision: float


def gradient_passes(config: ConfigDict) -> Work:
    """How many forward passes' operations a gradient takes, forward pass included.

    Backwards, half is of what goes in and half of the parameters; the latter falls away where adapters are trained,
    and all of it in a vision tower that is frozen or has no adapters. Attention of a token with others has no
    parameters, so that beside adapters a pass of it too few is counted: some 5% of the 7B model's operations at 8,192
    tokens.
    """
    if config.lora.modules:
        return Work(2, 2 if not config.model.freeze_vision and VISION_MODULES.intersection(config.lora.modules) else 1)
    return Work(3, 1 if config.model.freeze_vision else 3)


def needed_work(model: ModelConfig, batch: TrainBatch) -> Work:
    """Each prompt and picture that has a response once, each response once, no padding."""
    groups = batch.mask.any(axis=(1, 2))
    prompts, responses = batch.prompts.lengths * groups.astype(float), batch.mask.sum(-1).astype(float)
    before = prompts[:, None]
    pairs = np.sum(prompts**2 / 2) + np.sum(responses * (before + responses / 2))
    text = flops.layers_flops(model, float(prompts.sum() + responses.sum()), float(pairs))
    text += flops.head_flops(model, float(responses.sum()))
    return Work(text, _needed_of_pictures(model, batch.prompts, groups))


def _needed_of_pictures(model: ModelConfig, prompts: PromptBatch, groups: Bool[np.ndarray, " N"]) -> float:
    if not model.vision:
        return 0.0
    in_window = prompts.patch_valid.sum(-1) * groups.astype(float)[:, None]  # [N, W]
    pictures = [
        np.bincount(ids[ids >= 0], weights=patches[ids >= 0]) for ids, patches in zip(prompts.image_ids, in_window)
    ]
    picture_pairs = sum(float(np.sum(patches**2)) for patches in pictures)
    return flops.patches_flops(model.vision, float(in_window.sum()), float(np.sum(in_window**2)), picture_pairs)


def row_work(model: ModelConfig, micro_batches: Iterable[MicroBatch]) -> Work:
    """What goes through the model: padding, and a prompt once for each row that it stands in."""
    text, vision = 0.0, 0.0
    for one in micro_batches:
        rows, responses = one.prompts.size, one.samples.size
        text += flops.prompt_flops(model, one.length, rows)
        text += flops.response_flops(model, one.length, one.tokens, responses)
        vision += flops.vision_flops(model.vision, one.windows, rows) if model.vision else 0.0
    return Work(text, vision)
