"""How a judge's answers come about: chosen digit by digit, perhaps behind thoughts, or written freely."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from perception_r1_jax.inference import Engine, Generated, Sampling
from perception_r1_jax.inference.choices import Between
from perception_r1_jax.judge.prefix import continued
from perception_r1_jax.judge.template import answer_template, opening_behind_text
from perception_r1_jax.judge.verdicts import NOT_FINITE, OK, THOUGHTS_END, UNFINISHED, parse_verdicts
from perception_r1_jax.models import Prefix
from perception_r1_jax.processing import Processor, bucket_size
from perception_r1_jax.records import Prompt, PromptBatch

_PROBE_COUNT = 12  # numbers of one digit and of two
_FIRST_TAG = "<info1>"
# Thoughts may quote a response with a `</think>` of its own, but no sanitised one has the verdicts' first tag.
_THOUGHTS = re.compile(rf"{THOUGHTS_END}\s*(?={_FIRST_TAG})")
# Where verdicts usually begin behind thoughts, so that no more is written; behind other blanks the whole answer is.
_VERDICTS_BEGIN = tuple(f"{THOUGHTS_END}{blank}{_FIRST_TAG}" for blank in ("", " ", "\n", "\n\n"))
LEAST_DIGITS = 4
"""Answers with fewer have the programs of so many."""


class Batching(NamedTuple):
    """How the prompts of a bucket are run.

    Attributes:
        stack: `batch_prompts` with all of the bucket's sizes, of which `length` may be given anew.
        prefix: what all of them begin with, None for nothing.
        check: called between stretches of decoding, of which only a text that is not known has several; what it raises
            ends the answers.
    """

    stack: Callable[..., PromptBatch]
    prefix: Prefix | None
    check: Callable[[], None]


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

    def check_room(self, rows: int, length: int, answer_tokens: int, prefix_tokens: int) -> None:
        """Raises `UserError` unless prompts of so many tokens, and answers to them, have room in the cache."""
        probe = self._template(_PROBE_COUNT)
        bucket = bucket_size(max(answer_tokens * _PROBE_COUNT // len(probe.tokens), 1), smallest=LEAST_DIGITS)
        known = Between.of(self._template(bucket).between)
        self._engine.choice_levels(rows, length + len(probe.opening), known, prefix_tokens)

    def write(self, prompts: Sequence[Prompt], counts: Sequence[int], bucket: int, batching: Batching) -> list[Answer]:
        """Answers to prompts of one bucket, of so many verdicts each."""
        template, batch = self._template(bucket), batching.stack(prompts)
        digits = np.ones(len(batch.lengths), int)
        digits[: len(counts)] = counts
        chosen = self._engine.choose(batch, template.between, digits, template.choice_ids, prefix=batching.prefix)
        return [self._fill(logits[:count]) for logits, count in zip(chosen.logits, counts)]

    def _fill(self, logits: np.ndarray) -> Answer:
        """The answer from the logits float32 [m, 2] of its digits."""
        if not np.isfinite(logits).all():  # else a broken judge would say 0 to everything
            return no_answer(NOT_FINITE)
        tokens = self._template(len(logits)).fill(logits.argmax(-1))
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities = weights[:, 1] / weights.sum(-1)
        return Answer((*tokens.tolist(), self._stop_id), True, OK, tuple(probabilities.tolist()))


class ThoughtAnswers:
    """The model writes its thoughts, greedily, up to the `</think>` before its verdicts, and chooses the digits behind.

    Attributes:
        finer: as of `ChosenAnswers`.
    """

    finer = 1

    def __init__(self, engine: Engine, processor: Processor, max_thought_tokens: int):
        """Raises as `ChosenAnswers` and `opening_behind_text`."""
        self._max_thought_tokens = max_thought_tokens
        self._thoughts = FreeAnswers(engine, processor, max_thought_tokens, stop_strings=_VERDICTS_BEGIN)
        self._chosen = ChosenAnswers(engine, processor)
        self._opening = tuple(answer_template(processor.tokenizer, 1).opening.tolist())
        self._opening_behind = tuple(opening_behind_text(processor.tokenizer).tolist())
        self._decode, self._stop_ids = processor.decode, processor.stop_ids

    def prepare(self, prompt: Prompt, count: int) -> tuple[Prompt, int]:
        """As of `ChosenAnswers`, but that the answer's opening comes behind the thoughts."""
        return prompt, self._chosen.prepare(prompt, count)[1]

    def check_room(self, rows: int, length: int, answer_tokens: int, prefix_tokens: int) -> None:
        """As of `ChosenAnswers`."""
        self._thoughts.check_room(rows, length, self._max_thought_tokens, prefix_tokens)
        longest = bucket_size(length + self._max_thought_tokens, finer=self._chosen.finer)
        self._chosen.check_room(rows, longest, answer_tokens, prefix_tokens)

    def write(self, prompts: Sequence[Prompt], counts: Sequence[int], bucket: int, batching: Batching) -> list[Answer]:
        """As of `ChosenAnswers`, thoughts included; "unfinished" where they have no end within their limit."""
        written = self._thoughts.write(prompts, counts, bucket, batching)
        thoughts = [self._thought(answer, count) for answer, count in zip(written, counts)]
        begun = {
            row: thought + self._opening_behind if thought else self._opening
            for row, thought in enumerate(thoughts)
            if thought is not None
        }
        answers = [no_answer(UNFINISHED if answer.status == OK else answer.status) for answer in written]
        if begun:
            opened = [continued(prompts[row], np.array(tokens, np.int32)) for row, tokens in begun.items()]
            chosen = self._choose(opened, [counts[row] for row in begun], bucket, batching)
            for (row, tokens), answer in zip(begun.items(), chosen):
                rest = answer.tokens[len(self._opening) :]
                answers[row] = answer._replace(tokens=tokens + rest) if rest else answer
        return answers

    def _choose(self, opened: Sequence[Prompt], counts: Sequence[int], bucket: int, batching: Batching) -> list[Answer]:
        """Answers to prompts up to the first digit: the longest decides on the length of all."""
        length = bucket_size(max(len(prompt.tokens) for prompt in opened), finer=self._chosen.finer)
        longer = batching._replace(stack=functools.partial(batching.stack, length=length))
        return self._chosen.write(opened, counts, bucket, longer)

    def _thought(self, answer: Answer, count: int) -> tuple[int, ...] | None:
        """What stands before the verdicts: the tokens up to `</think>` and blanks behind it; None without an end.

        A judge that has written its verdicts at once, well-formed, has thought nothing.
        """
        tokens = answer.tokens
        if tokens and tokens[-1] in self._stop_ids:
            tokens = tokens[:-1]
        text = self._decode(tokens)
        end = _thoughts_end(text, answer.stopped)
        if end is not None:
            sizes = range(1, len(tokens) + 1)
            return tokens[: bisect.bisect_right(sizes, end, key=lambda size: len(self._decode(tokens[:size])))]
        at_once = answer.stopped and parse_verdicts(text, count).status == OK
        return () if at_once else None


def _thoughts_end(text: str, stopped: bool) -> int | None:
    """Where in a text the thoughts and the blanks behind them end; None where they do not.

    A last `</think>` without verdicts behind ends them, too, unless the text was cut: they may go on.
    """
    if match := _THOUGHTS.search(text):
        return match.end()
    _, end, rest = text.rpartition(THOUGHTS_END)
    if not end or not (stopped or _FIRST_TAG.startswith(rest.strip())):
        return None
    return len(text) - len(rest.lstrip())


class FreeAnswers:
    """The model writes what it likes, greedily.

    Attributes:
        finer: as of `ChosenAnswers`.
    """

    finer = 1

    def __init__(
        self, engine: Engine, processor: Processor, max_new_tokens: int, *, stop_strings: tuple[str, ...] = ()
    ):
        self._engine, self._decode = engine, processor.decode
        self._sampling = Sampling(
            max_new_tokens=max_new_tokens,
            stop_ids=processor.stop_ids,
            pad_id=processor.pad_id,
            temperature=0.0,
            banned_ids=processor.banned_ids,
            stop_strings=stop_strings,
        )

    def prepare(self, prompt: Prompt, count: int) -> tuple[Prompt, int]:
        """As of `ChosenAnswers`: nothing of the answer is known, and its bucket is its limit."""
        return prompt, self._sampling.max_new_tokens

    def check_room(self, rows: int, length: int, answer_tokens: int, prefix_tokens: int) -> None:
        """As of `ChosenAnswers`; an answer has as many tokens as it may have."""
        self._engine.plan(rows, length, 1, self._sampling, prefix_tokens)

    def write(self, prompts: Sequence[Prompt], counts: Sequence[int], bucket: int, batching: Batching) -> list[Answer]:
        """As of `ChosenAnswers`."""
        generated = self._engine.generate(
            batching.stack(prompts),
            1,
            self._sampling,
            jax.random.key(0),  # greedy: never drawn from
            prefix=batching.prefix,
            decode=self._decode,
            on_progress=lambda finished: batching.check(),
        )
        return [_written(generated, row) for row in range(len(counts))]


def _written(generated: Generated, row: int) -> Answer:
    if np.isnan(generated.logps[row, 0]).any():
        return no_answer(NOT_FINITE)
    tokens = generated.tokens[row, 0][generated.mask[row, 0]]
    return Answer(tuple(tokens.tolist()), bool(generated.stopped[row, 0]), OK)
