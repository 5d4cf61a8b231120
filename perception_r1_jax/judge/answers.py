"""How a judge's answers come about: chosen digit by digit in a known text, or written freely."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from perception_r1_jax.inference import Engine, Generated, Sampling
from perception_r1_jax.judge.prefix import continued
from perception_r1_jax.judge.template import answer_template
from perception_r1_jax.judge.verdicts import NOT_FINITE, OK
from perception_r1_jax.models import Prefix
from perception_r1_jax.processing import Processor, bucket_size
from perception_r1_jax.records import Prompt, PromptBatch

_PROBE_COUNT = 12  # numbers of one digit and of two
LEAST_DIGITS = 4
"""Answers with fewer have the programs of so many."""


class Answer(NamedTuple):
    """What the judge has written to one request.

    Attributes:
        tokens: ids, the one that stops included; none without an answer.
        stopped: false where the answer was cut at its limit.
        status: "ok", or why there is no answer.
        probabilities: of a 1 at each digit, where it chose between the digits; else None.
    """

    tokens: tuple[int, ...]
    stopped: bool
    status: str
    probabilities: tuple[float, ...] | None = None


def no_answer(status: str) -> Answer:
    """None, and why."""
    return Answer((), False, status)


class ChosenAnswers:
    """The text of an answer is known but for its digits, and the model chooses each of them: m - 1 decoding steps.

    Attributes:
        finer: of prompts' buckets (`bucket_size`): each has few programs, so there may be more, with less padding.
    """

    finer = 2

    def __init__(self, engine: Engine, processor: Processor):
        """Raises `UserError` for a tokenizer without a single token for a verdict's digit."""
        self._engine, self._stop_id = engine, processor.stop_ids[0]
        self._template = functools.cache(functools.partial(answer_template, processor.tokenizer))
        self._template(_PROBE_COUNT)

    def prepare(self, prompt: Prompt, count: int) -> tuple[Prompt, int]:
        """The prompt to run for an answer of so many verdicts, up to the first digit, and the answer's bucket."""
        return continued(prompt, self._template(count).opening), bucket_size(count, smallest=LEAST_DIGITS)

    def write(
        self,
        prompts: PromptBatch,
        counts: Sequence[int],
        bucket: int,
        prefix: Prefix | None,
        check: Callable[[], None],
    ) -> list[Answer]:
        """Answers to the first prompts of a batch, of so many verdicts each; all of one bucket.

        `check` is called between stretches of decoding, of which only a free answer has several.
        """
        template = self._template(bucket)
        digits = np.ones(len(prompts.lengths), int)
        digits[: len(counts)] = counts
        chosen = self._engine.choose(prompts, template.between, digits, template.choice_ids, prefix=prefix)
        return [self._fill(logits[:count]) for logits, count in zip(chosen.logits, counts)]

    def _fill(self, logits: np.ndarray) -> Answer:
        """The answer from the logits float32 [m, 2] of its digits."""
        if not np.isfinite(logits).all():  # else a broken judge would say 0 to everything
            return no_answer(NOT_FINITE)
        tokens = self._template(len(logits)).fill(logits.argmax(-1))
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = weights[:, 1] / weights.sum(-1)
        return Answer((*tokens.tolist(), self._stop_id), True, OK, tuple(probabilities.tolist()))


class FreeAnswers:
    """The model writes what it likes, greedily.

    Attributes:
        finer: as of `ChosenAnswers`.
    """

    finer = 1

    def __init__(self, engine: Engine, processor: Processor, max_new_tokens: int):
        self._engine = engine
        self._sampling = Sampling(
            max_new_tokens=max_new_tokens,
            stop_ids=processor.stop_ids,
            pad_id=processor.pad_id,
            temperature=0.0,
            banned_ids=processor.banned_ids,
        )

    def prepare(self, prompt: Prompt, count: int) -> tuple[Prompt, int]:
        """As of `ChosenAnswers`: nothing of the answer is known, and its bucket is its limit."""
        return prompt, self._sampling.max_new_tokens

    def write(
        self,
        prompts: PromptBatch,
        counts: Sequence[int],
        bucket: int,
        prefix: Prefix | None,
        check: Callable[[], None],
    ) -> list[Answer]:
        """As of `ChosenAnswers`; what `check` raises ends it."""
        key = jax.random.key(0)  # greedy: never drawn from
        generated = self._engine.generate(
            prompts, 1, self._sampling, key, prefix=prefix, on_progress=lambda finished: check()
        )
        return [_written(generated, row) for row in range(len(counts))]


def _written(generated: Generated, row: int) -> Answer:
    if np.isnan(generated.logps[row, 0]).any():
        return no_answer(NOT_FINITE)
    tokens = generated.tokens[row, 0][generated.mask[row, 0]]
    return Answer(tuple(tokens.tolist()), bool(generated.stopped[row, 0]), OK)
