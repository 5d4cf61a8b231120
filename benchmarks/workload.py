"""What the benchmarks work on: problems with pictures, prompts of text, and lengths with a long tail. All seeded."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence

import numpy as np
from PIL import Image

from perception_r1_jax.processing import Processor, batch_prompts, lay_out_patches
from perception_r1_jax.records import Problem, Prompt, PromptBatch

LENGTH_STEP = 64
"""Prompts are padded to a multiple of this."""

SIDE_SPREAD = 10
"""Pixels that a picture's sides may differ from what is asked for."""


def picture_prompts(processor: Processor, count: int, side: int, seed: int = 0) -> list[Prompt]:
    """Questions about a picture each, of noise and about `side` x `side` pixels."""
    rng = np.random.default_rng(seed)
    problems = [
        Problem(f"picture {i}", "<image>How long is side AB?", (_picture(rng, side),), answer="") for i in range(count)
    ]
    return [processor.prompt(problem) for problem in problems]


def text_prompts(processor: Processor, lengths: Sequence[int], seed: int = 0) -> list[Prompt]:
    """Prompts of so many random tokens each, no token of them special."""
    rng = np.random.default_rng(seed)
    ordinary = min(processor.tokenizer.added_tokens_decoder)
    return [_text_prompt(processor, i, rng.integers(0, ordinary, length, np.int32)) for i, length in enumerate(lengths)]


def pack(processor: Processor, prompts: Sequence[Prompt]) -> PromptBatch:
    """All prompts in one bucket."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    return stack(processor, prompts, len(prompts), -(-longest // LENGTH_STEP) * LENGTH_STEP)


def stack(processor: Processor, prompts: Sequence[Prompt], rows: int, length: int) -> PromptBatch:
    """Prompts padded to so many tokens, and rows of none after them."""
    windows = max(len(prompt.vision.image_ids) for prompt in prompts)
    return batch_prompts(prompts, rows=rows, length=length, windows=windows, pad_id=processor.pad_id)


def log_normal_lengths(count: int, median: float, percentile_95: float, cap: int, seed: int = 0) -> np.ndarray:
    """Lengths int32 [count] of a log-normal distribution, at most `cap`, in random order.

    They are the distribution's quantiles at equal steps: median and tail are as asked for, whatever the seed.
    """
    normal = statistics.NormalDist()
    spread = np.log(percentile_95 / median) / normal.inv_cdf(0.95)
    quantiles = np.array([normal.inv_cdf((i + 0.5) / count) for i in range(count)])
    lengths = np.clip(np.rint(median * np.exp(spread * quantiles)), 1, cap).astype(np.int32)
    return np.random.default_rng(seed).permutation(lengths)


def _picture(rng: np.random.Generator, side: int) -> bytes:
    width, height = rng.integers(side - SIDE_SPREAD, side + SIDE_SPREAD, 2, endpoint=True)
    buffer = io.BytesIO()
    pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _text_prompt(processor: Processor, number: int, tokens: np.ndarray) -> Prompt:
    length = len(tokens)
    no_picture = lay_out_patches(np.zeros((0, processor.patch_size), np.float32), np.zeros((0, 3), np.int64))
    return Prompt(
        Problem(f"text {number}", "", (), answer=""),
        tokens,
        positions=np.tile(np.arange(length, dtype=np.int32), (3, 1)),
        next_position=length,
        image_slots=np.full(length, -1, np.int32),
        vision=no_picture,
    )
