"""Groups are judged and graded as they finish, while others are still being drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from perception_r1_jax.judge.background import wait_for
from perception_r1_jax.judge.call import AnyJudge
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.accuracy import AccuracyPool
from perception_r1_jax.rewards.cheap import CheapRewards, cheap_rewards
from perception_r1_jax.rewards.score import RewardSettings
from perception_r1_jax.training.timing import JUDGE, Clock

Group = TypeVar("Group")


class Stream:
    """Takes the finished groups of one draw; as a context, at whose end nothing is under way any more.

    Cheap rewards are computed in a thread, with the pool's processes. A judge on the mesh runs within `add`, as soon as
    a batch is full: its devices are those that draw. A remote judge answers while they go on drawing.

    Args:
        problems: N of them, whose groups are drawn.
        judge: None for none.
        streaming: false keeps the requests from the judge until all groups are there.
        pool, settings: of the cheap rewards.
        clock: of the step.
        check: called now and then while something is waited for; what it raises ends it.
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        judge: AnyJudge | None,
        *,
        streaming: bool,
        pool: AccuracyPool,
        settings: RewardSettings,
        clock: Clock,
        check: Callable[[], None],
    ):
        self._problems, self._streaming, self._clock, self._check = problems, streaming, clock, check
        self._pool, self._settings = pool, settings
        self._texts: dict[int, Sequence[str]] = {}
        self._asked: list[int] = []
        self._cheap: list[Future[list[CheapRewards]]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cheap rewards")
        self._judge, self._call = judge, judge.begin(clock.judging, check) if judge else None

    def __enter__(self) -> Stream:
        with contextlib.ExitStack() as stack:
            stack.callback(self._thread.shutdown, cancel_futures=True)
            if self._call:
                stack.enter_context(self._call)
            self._entered = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._entered.__exit__(*error)

    def add(self, rows: Sequence[int], texts: Sequence[Sequence[str]]) -> None:
        """Takes the texts [n][G] of all responses to the problems of these rows."""
        self._texts |= zip(rows, texts)
        self._cheap.append(self._thread.submit(self._compute_cheap, [self._problems[row] for row in rows], texts))
        if self._streaming:
            self._ask(rows)

    def judgements(self) -> list[list[Judgement]] | None:
        """Of all groups [N][G], in the order of the problems; None without a judge."""
        if not self._call:
            return None
        if not self._streaming:
            self._ask(range(len(self._problems)))
        flat = self._call.finish()
        group = len(flat) // len(self._asked)
        return _sorted(self._asked, (flat[start : start + group] for start in range(0, len(flat), group)))

    def cheap(self) -> list[CheapRewards]:
        """Of all groups [N], in the order of the problems."""
        parts = wait_for(self._cheap, self._check)
        return _sorted(self._texts, (group for part in parts for group in part))

    def _ask(self, rows: Sequence[int]) -> None:
        if self._call:
            self._asked += rows
            with self._clock(JUDGE):
                request = self._judge.prompt.request
                self._call.add([request(self._problems[row], text) for row in rows for text in self._texts[row]])

    def _compute_cheap(self, problems: Sequence[Problem], texts: Sequence[Sequence[str]]) -> list[CheapRewards]:
        with self._clock.working():
            return cheap_rewards(problems, texts, self._pool, self._settings)


def _sorted(rows: Iterable[int], groups: Iterable[Group]) -> list[Group]:
    return [group for _, group in sorted(zip(rows, groups), key=lambda pair: pair[0])]
