"""Replies to any number of prompts, in few shapes. Evaluations and scripts/generate.py ask this way."""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Key

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.engine import Engine, Generated, ignore_progress
from perception_r1_jax.inference.generation import FinishedGroups
from perception_r1_jax.inference.sampling import Sampling
from perception_r1_jax.processing import Processor, batch_prompts
from perception_r1_jax.records import FINISH_LENGTH, FINISH_STOP, Problem, Prompt, PromptBatch

NOT_FINITE = "the model's numbers are not finite"

Bucket = tuple[int, int]
"""Tokens L and windows W that a prompt is padded to."""


class Reply(NamedTuple):
    """A reply, or why there is none.

    Attributes:
        text: without special tokens; None where there is no reply.
        finish_reason: "stop" or "length"; None likewise.
        fault: what is wrong with the prompt or the model; "" where there is a reply.
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
    on_reply: Callable[[str, Reply], None],
    on_progress: Callable[[int], None] = ignore_progress,
) -> None:
    """Replies to all prompts, `batch_size` of a bucket at a time: where one is done, the next of its bucket begins.

    Prompts are read as they are needed. Those of other buckets wait; when `batch_size` of one wait, no more are read,
    and their turn comes when all that were begun are done. So no more than `batch_size` of a bucket wait, there is one
    set of programs for each bucket in use, and the more buckets come by turns, the sooner rows stay empty. Draws depend
    on the key and the problem's id, not on what else is asked.

    Args:
        engine: holds the model's parameters.
        processor: the model's.
        prompts: or the faults of those that cannot be used.
        sampling: how tokens are drawn.
        key: of the draws.
        batch_size: how many prompts of a bucket run at once, where the cache has room for them. As many of each bucket
            are in memory at most, those that run counted apart.
        bucket_of: what a prompt is padded to.
        on_reply: called with a problem's id and its reply, as it is done, or its fault, as it is read. Not to have room
            in the cache is one.
        on_progress: as of `Engine.generate`: what it raises ends it all.
    """
    plan = functools.partial(engine.plan, batch_size, samples=1, sampling=sampling)
    prompts = _with_room(prompts, lambda prompt: plan(bucket_of(prompt)[0]))
    waiting = _Waiting(prompts, bucket_of, batch_size, on_reply)
    generate = functools.partial(
        engine.generate, samples=1, sampling=sampling, key=key, decode=processor.decode, on_progress=on_progress
    )
    while (bucket := waiting.next_bucket()) is not None:
        _reply_to_bucket(generate, processor, waiting, bucket, on_reply)


def _with_room(
    prompts: Iterable[Prompt | DroppedProblem], plan: Callable[[Prompt], object]
) -> Iterator[Prompt | DroppedProblem]:
    """The prompts; those for which `plan` raises UserError are faults."""
    for prompt in prompts:
        try:
            if not isinstance(prompt, DroppedProblem):
                plan(prompt)
        except UserError as error:
            prompt = DroppedProblem(prompt.problem.problem_id, "no room in the cache", str(error))
        yield prompt


class _Waiting:
    """Prompts that were read and not begun, by bucket: no more than `most` of each."""

    def __init__(
        self,
        prompts: Iterable[Prompt | DroppedProblem],
        bucket_of: Callable[[Prompt], Bucket],
        most: int,
        on_reply: Callable[[str, Reply], None],
    ):
        self.most = most
        self._prompts, self._bucket_of, self._on_reply = iter(prompts), bucket_of, on_reply
        self._by_bucket: dict[Bucket, deque[Prompt]] = defaultdict(deque)

    def next_bucket(self) -> Bucket | None:
        """To begin with: one that is full; when all prompts are read the smallest; None if nothing waits."""
        while not self._full() and self._read():
            pass
        return self._full() or min((bucket for bucket, prompts in self._by_bucket.items() if prompts), default=None)

    def take(self, bucket: Bucket, count: int) -> list[Prompt]:
        """Up to `count` prompts of a bucket. For them more are read, until another bucket is full."""
        prompts = self._by_bucket[bucket]
        while len(prompts) < count and not self._full() and self._read():
            pass
        return [prompts.popleft() for _ in range(min(count, len(prompts)))]

    def _full(self) -> Bucket | None:
        return next((bucket for bucket, prompts in self._by_bucket.items() if len(prompts) == self.most), None)

    def _read(self) -> bool:
        """Reads one, if there is one."""
        prompt = next(self._prompts, None)
        if isinstance(prompt, DroppedProblem):
            self._on_reply(prompt.problem_id, Reply(None, None, prompt.fault))
        elif prompt is not None:
            self._by_bucket[self._bucket_of(prompt)].append(prompt)
        return prompt is not None


def _reply_to_bucket(
    generate: Callable[..., Generated],
    processor: Processor,
    waiting: _Waiting,
    bucket: Bucket,
    on_reply: Callable[[str, Reply], None],
) -> None:
    """Replies to what waits in a bucket, and to what comes while that is done."""
    length, windows = bucket
    pack = functools.partial(batch_prompts, length=length, windows=windows, pad_id=processor.pad_id)
    asked: dict[int, tuple[str, int]] = {}  # row -> id and tokens of its prompt

    def take(rows: Iterable[int], count: int) -> list[Prompt]:
        prompts = waiting.take(bucket, count)
        for row, prompt in zip(rows, prompts):
            asked[row] = (prompt.problem.problem_id, len(prompt.tokens))
        return prompts

    def on_groups(groups: FinishedGroups) -> PromptBatch | None:
        firsts = (x[:, 0] for x in (groups.tokens, groups.mask, groups.logps, groups.stopped))
        for row, *first in zip(groups.rows, *firsts):
            name, prompt_tokens = asked[row]
            on_reply(name, _make_reply(processor, prompt_tokens, *first))
        more = take(groups.rows, len(groups.rows))
        return pack(more, rows=len(more)) if more else None

    generate(pack(take(range(waiting.most), waiting.most), rows=waiting.most), on_groups=on_groups)


def _make_reply(
    processor: Processor,
    prompt_tokens: int,
    tokens: np.ndarray,
    mask: np.ndarray,
    logps: np.ndarray,
    stopped: np.bool_,
) -> Reply:
    if not np.isfinite(logps[mask]).all():  # else a broken model would have a text like any other
        return Reply(None, None, NOT_FINITE)
    token_ids = tokens[mask].tolist()
    finish = FINISH_STOP if stopped else FINISH_LENGTH
    return Reply(processor.decode(token_ids), finish, token_ids=tuple(token_ids), prompt_tokens=prompt_tokens)
