"""Greedy replies to prompts, in batches of few shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.processing import Processor, batch_prompts, pick_buckets
from perception_r1_jax.records import FINISH_LENGTH, FINISH_STOP, Prompt


class Reply(NamedTuple):
    """A reply's text and finish reason ("stop" or "length"); neither, and the fault, where there is no prompt."""

    text: str | None
    finish_reason: str | None
    fault: str = ""


def reply_greedily(
    engine: Engine,
    processor: Processor,
    prompts: Iterable[Prompt | DroppedProblem],
    *,
    batch_size: int,
    max_new_tokens: int,
    prompt_buckets: Sequence[int],
    window_buckets: Sequence[int],
) -> Iterator[tuple[str, Reply]]:
    """The problem's id and the reply of each prompt, as its batch is done; a dropped problem's fault, at once.

    A prompt waits in its bucket until `batch_size` of them are there, or no more come. So batches depend on the prompts
    alone, no more than one batch a bucket is held, and there is one program for each bucket in use. The last batch of
    a bucket is filled up with empty rows.
    """
    sampling = Sampling(
        max_new_tokens, processor.stop_ids, processor.pad_id, temperature=0.0, banned_ids=processor.banned_ids
    )
    waiting: dict[tuple[int, int], list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        if isinstance(prompt, DroppedProblem):
            yield prompt.problem_id, Reply(None, None, prompt.fault)
            continue
        bucket = pick_buckets([prompt], prompt_buckets, window_buckets)
        waiting[bucket].append(prompt)
        if len(waiting[bucket]) == batch_size:
            yield from _reply(engine, processor, waiting.pop(bucket), batch_size, bucket, sampling)
    for bucket, rest in sorted(waiting.items(), key=lambda item: item[0]):
        yield from _reply(engine, processor, rest, batch_size, bucket, sampling)


def _reply(
    engine: Engine,
    processor: Processor,
    prompts: Sequence[Prompt],
    rows: int,
    bucket: tuple[int, int],
    sampling: Sampling,
) -> Iterator[tuple[str, Reply]]:
    length, windows = bucket
    batch = batch_prompts(prompts, rows=rows, length=length, windows=windows, pad_id=processor.pad_id)
    out = engine.generate(batch, 1, sampling, jax.random.key(0))  # greedy: the key is never drawn from
    for prompt, tokens, mask, stopped in zip(prompts, out.tokens[:, 0], out.mask[:, 0], out.stopped[:, 0]):
        reply = Reply(processor.decode(tokens[mask]), FINISH_STOP if stopped else FINISH_LENGTH)
        yield prompt.problem.problem_id, reply
