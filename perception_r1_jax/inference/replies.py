"""Replies to any number of prompts, in batches of few shapes. Evaluations and scripts/generate.py ask this way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Array, Key

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.inference.engine import Engine, ignore_progress
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.processing import Processor, batch_prompts
from perception_r1_jax.records import FINISH_LENGTH, FINISH_STOP, Problem, Prompt

Bucket = tuple[int, int]
"""Tokens L and windows W that a prompt is padded to."""


class Reply(NamedTuple):
    """A reply, or why there is none.

    Attributes:
        text: without special tokens; None where the prompt could not be used.
        finish_reason: "stop" or "length"; None likewise.
        fault: what is wrong with the prompt; "" where there is a reply.
        token_ids: of the reply, its stop token included.
        prompt_tokens: length of the prompt.
    """

    text: str | None
    finish_reason: str | None
    fault: str = ""
    token_ids: tuple[int, ...] = ()
    prompt_tokens: int = 0


def prompts_or_faults(
    make: Callable[[Problem], Prompt], problems: Iterable[Problem | DroppedProblem]
) -> Iterator[Prompt | DroppedProblem]:
    """The prompt of each problem, one at a time; the fault of one that cannot be used, or could not be read."""
    for problem in problems:
        try:
            yield problem if isinstance(problem, DroppedProblem) else make(problem)
        except DroppedProblem as dropped:
            yield dropped


def reply(
    engine: Engine,
    processor: Processor,
    prompts: Iterable[Prompt | DroppedProblem],
    sampling: Sampling,
    key: Key[Array, ""],
    *,
    batch_size: int,
    bucket_of: Callable[[Prompt], Bucket],
    on_progress: Callable[[int], None] = ignore_progress,
) -> Iterator[tuple[str, Reply]]:
    """The problem's id and the reply of each prompt, as its batch is done; a dropped problem's fault, at once.

    A prompt waits in its bucket until `batch_size` of them are there, or no more come. So batches depend on the prompts
    alone, no more than one batch a bucket is held, and there is one program for each bucket in use. The last batch of
    a bucket is filled up with empty rows. Draws depend on the key and the problem's id, not on the batch. What
    `on_progress` raises, between stretches of decoding, ends it all (`Engine.generate`).
    """
    waiting: dict[Bucket, list[Prompt]] = defaultdict(list)

    def reply_to(bucket: Bucket) -> Iterator[tuple[str, Reply]]:
        return _reply(engine, processor, waiting.pop(bucket), batch_size, bucket, sampling, key, on_progress)

    for prompt in prompts:
        if isinstance(prompt, DroppedProblem):
            yield prompt.problem_id, Reply(None, None, prompt.fault)
            continue
        bucket = bucket_of(prompt)
        waiting[bucket].append(prompt)
        if len(waiting[bucket]) == batch_size:
            yield from reply_to(bucket)
    for bucket in sorted(waiting):
        yield from reply_to(bucket)


def _reply(
    engine: Engine,
    processor: Processor,
    prompts: Sequence[Prompt],
    rows: int,
    bucket: Bucket,
    sampling: Sampling,
    key: Key[Array, ""],
    on_progress: Callable[[int], None],
) -> Iterator[tuple[str, Reply]]:
    length, windows = bucket
    batch = batch_prompts(prompts, rows=rows, length=length, windows=windows, pad_id=processor.pad_id)
    out = engine.generate(batch, 1, sampling, key, decode=processor.decode, on_progress=on_progress)
    for prompt, tokens, mask, stopped in zip(prompts, out.tokens[:, 0], out.mask[:, 0], out.stopped[:, 0]):
        token_ids, finish = tokens[mask].tolist(), FINISH_STOP if stopped else FINISH_LENGTH
        text, size = processor.decode(token_ids), len(prompt.tokens)
        yield prompt.problem.problem_id, Reply(text, finish, token_ids=tuple(token_ids), prompt_tokens=size)
