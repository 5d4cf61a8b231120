"""Cuts a batch into micro-batches of like length, each in buckets of its own, so that little of it is padding.

A row is a prompt and some of its responses; a micro-batch is some rows. Which rows come together depends on their
lengths alone. The weight of every token in the loss is known beforehand (`aggregation.token_weights`), so it changes
nothing but rounding.
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
        samples: int [n, g], which of its responses.
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


def cut_batch(
    prompts: PromptBatch, mask: Bool[np.ndarray, "N G C"], live: Bool[np.ndarray, "N G"], config: ConfigDict
) -> list[MicroBatch]:
    """The micro-batches of a batch, shortest first; at least one.

    A group that is split over rows is split by length. A micro-batch without any live response is left out.

    Args:
        prompts: of the batch.
        mask: true on the tokens of the responses.
        live: which responses are needed; the others come along where they fill a row or a micro-batch.
        config: the run's; `grpo.micro_batch_prompts` rows of `grpo.micro_batch_samples` responses each are a
            micro-batch, in the buckets of `rollout`.

    Raises:
        UserError: a size that does not divide the batch.
    """
    rows, size = config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples
    n, g, most_tokens = mask.shape
    check_divides("grpo.micro_batch_prompts", rows, n)
    check_divides("grpo.micro_batch_samples", size, g)
    ends = np.max(mask * np.arange(1, most_tokens + 1), axis=-1) * live
    samples = np.argsort(-ends, axis=1, kind="stable").reshape(-1, size)
    prompt = np.repeat(np.arange(n), g // size)
    needed = live[prompt[:, None], samples].any(axis=1)
    tokens = _buckets(ends[prompt, samples[:, 0]], config.rollout.response_buckets, most_tokens)
    length = _buckets(prompts.lengths, config.rollout.prompt_buckets, prompts.tokens.shape[1])[prompt]
    windows = (prompts.image_ids >= 0).sum(axis=1)
    windows = _buckets(windows, config.rollout.window_buckets, prompts.image_ids.shape[1])[prompt]
    order = np.lexsort((windows, length, tokens, ~needed)).reshape(-1, rows)
    last = max(int(needed[order].any(axis=1).sum()), 1)
    return [
        MicroBatch(prompt[run], samples[run], int(length[run].max()), int(windows[run].max()), int(tokens[run].max()))
        for run in order[:last]
    ]


def _buckets(sizes: Int[np.ndarray, " N"], buckets: Sequence[int], whole: int) -> Int[np.ndarray, " N"]:
    """The smallest bucket that holds each size; the batch itself is the largest."""
    edges = np.array(sorted({bucket for bucket in buckets if bucket < whole} | {whole}))
    return edges[np.searchsorted(edges, sizes)]
