"""A checkpoint and prompts on which a model with a part missing cannot pass, and ways to compare.

Used by the live parity tests, and by `tests/fixtures/make_golden.py` for the tests that need no torch.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from perception_r1_jax.processing import Processor, batch_prompts
from perception_r1_jax.records import Problem, Prompt, PromptBatch
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint

OVERRIDES = {"vision_config": {"depth": 4, "fullatt_block_indexes": [1, 3]}}
LENGTH, WINDOWS = 192, 16


def write_checkpoint(folder: Path) -> Path:
    """A random Qwen2.5-VL: matrices six times the default initialisation, random biases and norms."""
    return write_random_checkpoint(folder, "qwen2_5_vl", OVERRIDES, seed=7, scale=6.0)


def drawing(width: int, height: int, seed: int) -> bytes:
    """A picture of noise, as PNG: no two patches are alike. Sides of whole merge units (28) are never resized."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def problems() -> list[Problem]:
    """Many windows with sides that are no multiple of the window; two pictures of unlike size; text alone."""
    return [
        Problem("windows", "What is the angle?", (drawing(364, 252, 0),), "1"),
        Problem("two", "Compare <image> and <image> now.", (drawing(140, 84, 1), drawing(84, 224, 2)), "2"),
        Problem("text", "How long is side AB of a square of area 9?", (), "3"),
    ]


def prompts(processor: Processor) -> list[Prompt]:
    """The problems as the model reads them."""
    return [processor.prompt(problem) for problem in problems()]


def batch(processor: Processor, made: list[Prompt]) -> PromptBatch:
    """All prompts and a filler row in one bucket."""
    return batch_prompts(made, rows=4, length=LENGTH, windows=WINDOWS, pad_id=processor.pad_id)


def relative_error(ours, reference) -> float:
    """The largest difference over the reference's largest value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
