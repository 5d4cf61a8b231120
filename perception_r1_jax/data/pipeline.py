"""The input pipeline: problems in the order of an epoch's shuffle, prepared ahead, in full batches of prompts.

    problems -> shuffle (by seed and epoch) -> repeat -> to_prompt (threads, ahead) -> batches

A problem that `to_prompt` drops is counted, named in the log and replaced by the next one of its epoch, so every batch
is full. A batch never crosses into the next epoch: of n usable problems an epoch gives floor(n / batch_size)
batches, and the rest of its order waits for another shuffle (METHOD.md: floor(1442 / 128) = 11).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import grain

from perception_r1_jax.data.errors import DataError, DroppedProblem
from perception_r1_jax.records import Problem, Prompt

logger = logging.getLogger(__name__)

Item = tuple[int, Prompt | DroppedProblem]
"""The epoch (from 0), and what became of one of its problems."""


def make_pipeline(
    problems: Sequence[Problem],
    to_prompt: Callable[[Problem], Prompt],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    prefetch: int = 1,
) -> PromptBatches:
    """An iterator of lists of `batch_size` prompts, whose position can be saved and restored.

    Args:
        problems: the data set; also at a restore, where it must be the same.
        to_prompt: prepares one problem, pictures decoded. Called from threads; raises `DroppedProblem` for
            one that cannot be used.
        batch_size: prompts in a batch.
        seed: of the shuffle; epoch e has an order of its own.
        shuffle: false keeps the order of `problems` in every epoch.
        epochs: passes over the problems; None for no end.
        prefetch: batches prepared ahead of the one asked for; 0 prepares each when it is asked for.

    Raises:
        DataError: not even one batch can be filled.
    """
    if len(problems) < batch_size:
        raise DataError(f"{len(problems)} problems do not fill a batch of {batch_size}. Lower the batch or add data.")
    order = grain.MapDataset.source(problems).seed(seed)
    order = order.shuffle() if shuffle else order
    items = order.repeat(epochs).map_with_index(_Prepare(to_prompt, len(problems)))
    threads = min(os.cpu_count() or 1, 16) if prefetch else 0
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(prefetch * batch_size, threads))
    return PromptBatches(iter(items.to_iter_dataset(ahead)), batch_size)


class _Prepare:
    """Turns position and problem into an `Item`; only the declared kind of failure is data, the rest is a bug."""

    def __init__(self, to_prompt: Callable[[Problem], Prompt], problems: int) -> None:
        self._to_prompt, self._problems = to_prompt, problems

    def __call__(self, position: int, problem: Problem) -> Item:
        epoch = position // self._problems
        try:
            return epoch, self._to_prompt(problem)
        except DroppedProblem as dropped:
            return epoch, dropped
        except Exception as error:
            error.add_note(f"while the prompt of problem {problem.problem_id!r} was prepared")
            raise


class PromptBatches(grain.DatasetIterator[list[Prompt]]):
    """Lists of prompts of one size, each list from a single epoch.

    Its state is where the stream of problems stands between two batches, and the drops so far. As a grain
    iterator it is also an orbax `StatefulCheckpointable`.

    Attributes:
        dropped: problem id -> why, for each problem dropped so far.
    """

    def __init__(self, items: grain.DatasetIterator[Item], batch_size: int) -> None:
        super().__init__(items)
        self._batch_size = batch_size
        self.dropped: dict[str, str] = {}

    def __next__(self) -> list[Prompt]:
        batch: list[Prompt] = []
        epochs: list[int] = []
        while len(batch) < self._batch_size:
            epoch, prompt = next(self._parent)
            if epoch not in epochs:
                epochs.append(epoch)
                self._check_fills(epochs)
                batch = []
            if isinstance(prompt, DroppedProblem):
                self._drop(prompt)
            else:
                batch.append(prompt)
        return batch

    def _drop(self, problem: DroppedProblem) -> None:
        """Names a problem the first time; each epoch drops it again."""
        if problem.problem_id not in self.dropped:
            self.dropped[problem.problem_id] = str(problem)
            logger.warning("dropped: %s", problem)

    def _check_fills(self, epochs: list[int]) -> None:
        """A third epoch within one batch means that the second, a whole one, did not fill it."""
        if len(epochs) > 2:
            names = "; ".join(list(self.dropped.values())[:5])
            raise DataError(
                f"No batch of {self._batch_size} could be filled from a whole epoch: {len(self.dropped)} problems "
                f"were dropped ({names}). Lower the batch, raise the limits, or add data."
            )

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, as plain JSON values."""
        return {"items": self._parent.get_state(), "dropped": dict(self.dropped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a saved position: the batches that follow are those that followed it."""
        self._parent.set_state(state["items"])
        self.dropped = dict(state["dropped"])
