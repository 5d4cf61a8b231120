"""What all requests of a judge begin with, found in the tokens of requests that share nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from perception_r1_jax.records import Problem, Prompt

PROBES = tuple(
    Problem("probe", text, images=(), answer="", annotations=(text,))
    for text in ("A", "b", "1", "$x", " y", "\n", "\\(", "∠", "<", ".")
)
"""Problems whose texts begin differently, so that no token of theirs is in what requests about them share."""


def shared_tokens(prompts: Sequence[Prompt]) -> np.ndarray:
    """The longest run of tokens that all of these begin with, int32 [P]."""
    shortest = min(len(prompt.tokens) for prompt in prompts)
    rows = np.stack([prompt.tokens[:shortest] for prompt in prompts])
    same = (rows == rows[0]).all(0)
    return rows[0, : shortest if same.all() else same.argmin()]


def behind(prompt: Prompt, prefix: np.ndarray) -> Prompt | None:
    """The rest of a prompt that begins with these tokens; None for another, and where there are none."""
    size = len(prefix)
    if not 0 < size < len(prompt.tokens) or (prompt.tokens[:size] != prefix).any():
        return None
    return dataclasses.replace(
        prompt,
        tokens=prompt.tokens[size:],
        positions=prompt.positions[:, size:],
        image_slots=prompt.image_slots[size:],
    )


def continued(prompt: Prompt, tokens: np.ndarray) -> Prompt:
    """A prompt with the tokens of more text at its end."""
    after = prompt.next_position + np.arange(len(tokens), dtype=np.int32)
    return dataclasses.replace(
        prompt,
        tokens=np.concatenate([prompt.tokens, tokens]),
        positions=np.concatenate([prompt.positions, np.tile(after, (3, 1))], axis=1),
        next_position=prompt.next_position + len(tokens),
        image_slots=np.concatenate([prompt.image_slots, np.full(len(tokens), -1, np.int32)]),
    )
