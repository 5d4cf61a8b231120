"""Cuts a batch into micro-batches of like length, each in buckets of its own, so that little of it is padding.

A row is a prompt and some of its responses, as many as fit; a micro-batch is some rows. Which rows come together
depends on their lengths alone. The weight of every token in the loss is known beforehand (`aggregation.token_weights`),
so it changes nothing but rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from perception_r1_jax.config import check_divides
from perception_r1_jax.processing import narrow
from perception_r1_jax.records import PromptBatch, TrainBatch


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """A part of a batch: n rows, each a prompt and g of its responses.

    Attributes:
        prompts: int [n], which prompt of the batch a row has.
        samples: int [n, g], which of its responses; g is the row's width.
        length: bucket L of the prompts.
        windows: bucket W of their pictures.
        tokens: bucket C of the responses.
    """

    prompts: Int[np.ndarray, " n"]
    samples: Int[np.ndarray, "n g"]
    length: int
    windows: int
    tokens: int

    @property
    def responses(self) -> tuple[Int[np.ndarray, "n 1"], Int[np.ndarray, "n g"]]:
        """The index that makes [n, g, ...] of an array [N, G, ...]."""
        return self.prompts[:, None], self.samples

    def take(self, batch: TrainBatch) -> TrainBatch:
        """The rows' part of a batch, in their buckets."""
        responses = self.take_responses(dataclasses.replace(batch, prompts=None))
        return dataclasses.replace(responses, prompts=self.take_prompts(batch.prompts))

    def take_prompts(self, prompts: PromptBatch) -> PromptBatch:
        """The rows' prompts, in their buckets."""
        return jax.tree.map(lambda x: x[self.prompts], narrow(prompts, self.length, self.windows))

    def take_responses(self, tree: Any) -> Any:
        """[N, G] -> [n, g] and [N, G, C] -> [n, g, its bucket] of every array."""
        return jax.tree.map(lambda x: (x[..., : self.tokens] if x.ndim == 3 else x)[self.responses], tree)


def cut_batch(prompts: PromptBatch, mask: Bool[np.ndarray, "N G C"], config: ConfigDict) -> list[MicroBatch]:
    """The micro-batches of a batch, shortest first; at least one.

    A row has `grpo.micro_batch_samples` responses of the largest bucket, or two, four, ... times as many shorter ones,
    as long as they take no more tokens. So short responses share their prompt's row. A group that is split over rows is
    split by length. Responses without a token come along where they fill a row or a micro-batch; a micro-batch that
    has no others is left out.

    Args:
        prompts: of the batch.
        mask: true on the tokens of the responses that are needed.
        config: the run's; `grpo.micro_batch_prompts` rows are a micro-batch, in the buckets of `rollout`.

    Raises:
        UserError: a size that does not divide the batch.
    """
    rows, (n, g, most_tokens) = config.grpo.micro_batch_prompts, mask.shape
    check_divides("grpo.micro_batch_prompts", rows, n)
    check_divides("grpo.micro_batch_samples", config.grpo.micro_batch_samples, g)
    ends = np.max(mask * np.arange(1, most_tokens + 1), axis=-1)
    by_length = np.argsort(-ends, axis=1, kind="stable")
    longest_first = np.take_along_axis(ends, by_length, axis=1)
    tokens = _buckets(longest_first, config.rollout.response_buckets, most_tokens)
    length = _buckets(prompts.lengths, config.rollout.prompt_buckets, prompts.tokens.shape[1])
    windows = (prompts.image_ids >= 0).sum(axis=1)
    windows = _buckets(windows, config.rollout.window_buckets, prompts.image_ids.shape[1])
    cut = []
    for width, (prompt, start) in _rows_by_width(tokens, longest_first > 0, config).items():
        samples, longest = by_length[prompt[:, None], start[:, None] + np.arange(width)], tokens[prompt, start]
        needed = ends[prompt[:, None], samples].any(axis=1)
        order = np.lexsort((windows[prompt], length[prompt], longest, ~needed)).reshape(-1, rows)
        for run in order:
            sizes = (int(each.max()) for each in (length[prompt[run]], windows[prompt[run]], longest[run]))
            cut.append(MicroBatch(prompt[run], samples[run], *sizes))
    needed = [one for one in cut if ends[one.responses].any()]
    return sorted(needed or cut[:1], key=lambda one: one.tokens)


def _rows_by_width(
    tokens: Int[np.ndarray, "N G"], live: Bool[np.ndarray, "N G"], config: ConfigDict
) -> dict[int, tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]]:
    """For each number of responses in a row: the rows' prompts, and where in their groups they begin.

    Of each width there are as many rows as make whole micro-batches; the rest is split into rows of half the width.

    Args:
        tokens: the bucket of each response, the longest of a group first.
        live: which of them are needed.
        config: the run's.
    """
    size, group = config.grpo.micro_batch_samples, tokens.shape[1]
    widths = [size]
    while 2 * widths[-1] <= group:
        widths.append(2 * widths[-1])
    room = size * max(tokens.max(), config.rollout.response_buckets[-1])
    rows = {width: [] for width in widths}
    for prompt, buckets in enumerate(tokens):
        start = 0
        while start < group:
            width = max(width for width in widths if start + width <= group and width * buckets[start] <= room)
            rows[width].append((prompt, start))
            start += width
    for width in widths[:0:-1]:
        rows[width].sort(key=lambda row: not live[row[0], row[1]])  # those that nobody needs are split first
        whole = len(rows[width]) // config.grpo.micro_batch_prompts * config.grpo.micro_batch_prompts
        halves = [(prompt, start + half) for prompt, start in rows[width][whole:] for half in (0, width // 2)]
        rows[width], rows[width // 2] = rows[width][:whole], rows[width // 2] + halves
    return {width: tuple(np.array(found).T) for width, found in rows.items() if found}


def _buckets(sizes: Int[np.ndarray, "*N"], buckets: Sequence[int], whole: int) -> Int[np.ndarray, "*N"]:
    """The smallest bucket that holds each size; the batch itself is the largest."""
    edges = np.array(sorted({bucket for bucket in buckets if bucket < whole} | {whole}))
    return edges[np.searchsorted(edges, sizes)]
