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
from perception_r1_jax.records import Conversation, Problem, Prompt

logger = logging.getLogger(__name__)

Item = tuple[int, Any]
"""The epoch (from 0), and what one of its problems was made into, or the `DroppedProblem`."""


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
    items = prepared_items(problems, to_prompt, seed=seed, shuffle=shuffle, epochs=epochs)
    return PromptBatches(read_ahead(items, prefetch * batch_size), batch_size)


def prepared_items(
    source: Sequence[Problem] | Sequence[Conversation],
    prepare: Callable[[Any], Any],
    *,
    seed: int,
    shuffle: bool,
    epochs: int | None,
) -> grain.MapDataset[Item]:
    """The items of all epochs by their position, each prepared when it is asked for. Arguments as `make_pipeline`."""
    order = grain.MapDataset.source(source).seed(seed)
    order = order.shuffle() if shuffle else order
    return order.repeat(epochs).map_with_index(_Prepare(prepare, len(source)))


def read_ahead(items: grain.MapDataset[Item], count: int) -> grain.DatasetIterator[Item]:
    """The items in order, so many of them prepared by threads before they are asked for."""
    threads = min(os.cpu_count() or 1, 16) if count else 0
    return iter(items.to_iter_dataset(grain.ReadOptions(threads, max(count, threads))))


class _Prepare:
    """Turns position and problem into an `Item`; only the declared kind of failure is data, the rest is a bug."""

    def __init__(self, prepare: Callable[[Any], Any], problems: int) -> None:
        self._prepare, self._problems = prepare, problems

    def __call__(self, position: int, problem: Problem | Conversation) -> Item:
        epoch = position // self._problems
        try:
            return epoch, self._prepare(problem)
        except DroppedProblem as dropped:
            return epoch, dropped
        except Exception as error:
            error.add_note(f"while {_name(problem)} was prepared")
            raise


def _name(problem: Problem | Conversation) -> str:
    if isinstance(problem, Conversation):
        return f"conversation {problem.conversation_id!r}"
    return f"the prompt of problem {problem.problem_id!r}"


class Batches(grain.DatasetIterator):
    """What iterators of batches share: they name what was dropped, and their position can be saved and restored.

    Their state is where the stream of items stands between two batches, and the drops so far. As grain iterators
    they are also orbax `StatefulCheckpointable`.

    Attributes:
        dropped: problem id -> why, for each problem dropped so far.
    """

    def __init__(self, items: grain.DatasetIterator[Item]) -> None:
        super().__init__(items)
        self.dropped: dict[str, str] = {}

    def drop(self, problem: DroppedProblem) -> None:
        """Names a problem the first time; each epoch drops it again."""
        if problem.problem_id not in self.dropped:
            self.dropped[problem.problem_id] = str(problem)
            logger.warning("dropped: %s", problem)

    def drops(self) -> str:
        """How many were dropped, and the first of them, for messages."""
        return f"{len(self.dropped)} problems were dropped ({'; '.join(list(self.dropped.values())[:5])})"

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, as plain JSON values."""
        return {"items": self._parent.get_state(), "dropped": dict(self.dropped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a saved position: the batches that follow are those that followed it."""
        self._parent.set_state(state["items"])
        self.dropped = dict(state["dropped"])


class PromptBatches(Batches):
    """Lists of prompts of one size, each list from a single epoch."""

    def __init__(self, items: grain.DatasetIterator[Item], batch_size: int) -> None:
        super().__init__(items)
        self._batch_size = batch_size

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
                self.drop(prompt)
            else:
                batch.append(prompt)
        return batch

    def _check_fills(self, epochs: list[int]) -> None:
        """A third epoch within one batch means that the second, a whole one, did not fill it."""
        if len(epochs) > 2:
            raise DataError(
                f"No batch of {self._batch_size} could be filled from a whole epoch: {self.drops()}. "
                "Lower the batch, raise the limits, or add data."
            )
