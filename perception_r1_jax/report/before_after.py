"""The same problems before and after: the first and the last evaluation of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from perception_r1_jax.evaluation.files import evaluated_steps, items_file
from perception_r1_jax.evaluation.items import Item, read_items
from perception_r1_jax.evaluation.summary import pair_items
from perception_r1_jax.records import FINISH_LENGTH
from perception_r1_jax.report.workdir import MissingData, Workdir


@dataclasses.dataclass(frozen=True)
class BeforeAfter:
    """Two evaluations.

    Attributes:
        last: the step after which the second one was made; the first is the starting policy's.
        items: of each problem the item before and the one after, in the order of the first.
    """

    last: int
    items: Sequence[tuple[Item, Item]]

    @property
    def before(self) -> list[Item]:
        """The items of the first evaluation."""
        return [before for before, _ in self.items]

    @property
    def after(self) -> list[Item]:
        """The items of the second, in the order of the first."""
        return [after for _, after in self.items]

    @property
    def cut(self) -> list[int]:
        """Responses that reached the limit of tokens, before and after."""
        return [sum(item.finish_reason == FINISH_LENGTH for item in items) for items in (self.before, self.after)]


def pair_up(workdir: Workdir) -> BeforeAfter:
    """Pairs the items of the starting policy with those of the last evaluation.

    Raises:
        MissingData: there are not two evaluations of the same problems that can be read.
    """
    split = workdir.setting("evaluation.split")
    if not split:
        raise MissingData("This run was not evaluated: its config.evaluation.split is empty.")
    steps = evaluated_steps(workdir.path, split)
    if len(steps) < 2:
        found = ", ".join(f"eval/{split}-{step}.jsonl" for step in steps) or "none"
        raise MissingData(f"A comparison takes two evaluations, eval/{split}-STEP.jsonl; this run has {found}.")
    try:
        before, after = (read_items(items_file(workdir.path, split, step)) for step in (steps[0], steps[-1]))
        pair_items(before, after, "accuracy")
    except (ValueError, TypeError) as error:
        raise MissingData(f"The evaluations after steps {steps[0]} and {steps[-1]} cannot be used: {error}") from error
    later = {item.problem_id: item for item in after}
    return BeforeAfter(steps[-1], [(item, later[item.problem_id]) for item in before])
