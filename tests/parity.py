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
_HEADS = {"hidden_size": 80, "num_attention_heads": 10, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
TEXT_MODELS = {
    "tied": (
        "qwen2",
        {"hidden_size": 112, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "untied": ("qwen2", _HEADS),
    "mistral": ("mistral", _HEADS | {"head_dim": 16}),
    "llama": ("llama", _HEADS),
}
"""Family and overrides. The tied Qwen2 has the heads of the 0.5B, the other five query heads a key head, as the 32B.
The Mistral's heads together are wider than its hidden size, as Mistral-Nemo's are narrower."""
TEXT_LENGTH = 64


def write_checkpoint(folder: Path) -> Path:
    """A random Qwen2.5-VL: matrices six times the default initialisation, random biases and norms."""
    return write_random_checkpoint(folder, "qwen2_5_vl", OVERRIDES, seed=7, scale=6.0)


def write_text_checkpoint(folder: Path, name: str) -> Path:
    """One of `TEXT_MODELS`, as random as the other."""
    family, overrides = TEXT_MODELS[name]
    return write_random_checkpoint(folder, family, overrides, seed=11, scale=6.0)


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


def text_prompts(processor: Processor) -> list[Prompt]:
    """Conversations of unlike length."""
    system = {"role": "system", "content": "You judge answers."}
    users = ("Is 3 the length of side AB?", "No.")
    conversations = [[system, {"role": "user", "content": users[0]}], [{"role": "user", "content": users[1]}]]
    return [processor.chat_prompt(messages, problem_id=f"text{i}") for i, messages in enumerate(conversations)]


def text_batch(processor: Processor, made: list[Prompt]) -> PromptBatch:
    """Both and a filler row in one bucket without windows."""
    return batch_prompts(made, rows=3, length=TEXT_LENGTH, windows=0, pad_id=processor.pad_id)


def relative_error(ours, reference) -> float:
    """The largest difference over the reference's largest value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(ours - reference).max() / np.abs(reference).max())
