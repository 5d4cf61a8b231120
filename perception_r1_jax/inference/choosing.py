"""The host's side of choosing: a batch's rows through programs of few sizes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.call import Programs, without_pictures
from perception_r1_jax.inference.choices import Between
from perception_r1_jax.inference.pools import PREFILL_TOKENS
from perception_r1_jax.models import Params, Prefix
from perception_r1_jax.records import PromptBatch
from perception_r1_jax.sharding import put_batch, replicated


class Chosen(NamedTuple):
    """What was chosen in N answers (numpy). Beyond the places that a row has, the numbers mean nothing.

    Attributes:
        picked: int32 [N, M], numbers of choices.
        logits: float32 [N, M, choices].
        steps: int32 [N], decoding steps that a row's batch took.
    """

    picked: np.ndarray
    logits: np.ndarray
    steps: np.ndarray


class Choosing:
    """The programs for one kind of answers, as `Engine.choose` calls them under its mesh."""

    def __init__(self, programs: Programs, params: Params, mesh: Mesh, between: Between, choice_ids: tuple[int, ...]):
        self._programs, self._params, self._mesh = programs, params, mesh
        self._between, self._choice_ids = between, choice_ids

    def run(self, prompts: PromptBatch, counts: np.ndarray, prefix: Prefix | None, levels: Sequence[int]) -> Chosen:
        """Args as of `Engine.choose`; `levels` are the numbers of rows that there are programs for, rising."""
        run = functools.partial(self._run, prefix=prefix)
        sizes = prompts.tokens.shape[1], prompts.image_ids.shape[1], prefix.length if prefix else 0
        shape = ("choose", *sizes, *self._between.tokens.shape, levels)
        if shape not in self._programs.warm:
            for level in levels:
                run(_rows(prompts, np.zeros(0, int), level), 0)
            self._programs.warm.add(shape)
        logits = np.zeros((len(counts), len(self._between.sizes) + 1, len(self._choice_ids)), np.float32)
        steps = np.zeros(len(counts), np.int32)
        real = np.flatnonzero(prompts.lengths)
        by_count = real[np.argsort(counts[real], kind="stable")]  # rows that take as many steps run together
        for rows, level in in_levels(by_count, levels):
            wanted = int(counts[rows].max()) - 1
            logits[rows] = run(_rows(prompts, rows, level), wanted)[: len(rows)]
            steps[rows] = wanted
        return Chosen(logits.argmax(-1).astype(np.int32), logits, steps)

    def _run(self, batch: PromptBatch, steps: int, prefix: Prefix | None) -> np.ndarray:
        embeddings = self._programs.embed(self._params, put_batch(self._mesh, batch))
        text = put_batch(self._mesh, without_pictures(batch))
        known = jax.device_put((self._between, np.int32(steps)), replicated(self._mesh))
        return jax.device_get(
            self._programs.choose(self._params, text, embeddings, *known, prefix, choice_ids=self._choice_ids)
        )


def row_levels(rows: int, shards: int, tokens: int, budget: float) -> tuple[int, ...]:
    """Numbers of rows that run at a time, rising: many, and few for what is left over.

    Args:
        rows: of a batch.
        shards: among which they are split evenly.
        tokens: of a row, its answer included.
        budget: tokens whose keys and values a shard may hold.

    Raises:
        UserError: not even one row fits.
    """
    if budget < tokens:
        raise UserError(
            f"one request of {tokens} tokens needs room for their keys and values; there is room for {int(budget)}. "
            "Lower config.judge.max_prompt_tokens (--max_prompt_tokens), or raise config.judge.cache_memory "
            "(--cache_memory)."
        )
    most = min(-(-rows // shards), max(min(PREFILL_TOKENS, int(budget)) // tokens, 1))
    return tuple(sorted({shards * max(most // 8, 1), shards * most}))


def in_levels(rows: np.ndarray, levels: Sequence[int]) -> Iterator[tuple[np.ndarray, int]]:
    """Runs of these rows, each with the level that it is filled up to; at least half of a large one is used."""
    while rows.size:
        level = levels[-1] if 2 * rows.size > levels[-1] else levels[0]
        yield rows[:level], level
        rows = rows[level:]


def _rows(prompts: PromptBatch, rows: np.ndarray, level: int) -> PromptBatch:
    """These rows of the batch, filled up with rows of length 0."""
    filled = np.concatenate([rows, np.zeros(level - len(rows), int)])
    batch = jax.tree.map(lambda x: x[filled], prompts)
    batch.lengths[len(rows) :] = 0
    return batch
