"""Scored groups on the host: taken apart, put together, and kept on disk for the step that takes them."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perception_r1_jax.grpo.advantages import no_signal
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.records import Problem, Prompt, PromptBatch, Rollout, Scores
from perception_r1_jax.training.replay import write_archive


@dataclasses.dataclass(frozen=True)
class Groups:
    """N prompts with G scored responses to each.

    Attributes:
        prompts, rollout, scores: of each group, in one order.
        prompt_batch: the prompts padded and stacked, where they were drawn together; None once they are mixed.
    """

    prompts: list[Prompt]
    rollout: Rollout
    scores: Scores
    prompt_batch: PromptBatch | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def problems(self) -> list[Problem]:
        """What the prompts ask."""
        return [prompt.problem for prompt in self.prompts]

    @property
    def without_signal(self) -> np.ndarray:
        """Which groups teach nothing (`advantages.no_signal`), bool [N]."""
        return no_signal(self.scores.total, self.scores.valid)

    def take(self, rows: Sequence[int]) -> Groups:
        """The groups at these rows. What a batch has as a whole, statistics and counts, is left behind."""
        rollout, scores = self.rollout, self.scores
        pick = lambda values: [values[row] for row in rows]  # noqa: E731
        rows = np.asarray(rows, int)
        return Groups(
            pick(self.prompts),
            Rollout(
                rollout.tokens[rows],
                rollout.mask[rows],
                rollout.logps[rows],
                pick(rollout.finish_reasons),
                pick(rollout.texts),
            ),
            Scores(
                scores.total[rows],
                {name: values[rows] for name, values in scores.terms.items()},
                scores.valid[rows],
                pick(scores.judge_status),
                pick(scores.verdicts),
                pick(scores.probabilities),
                counts={},
            ),
        )


def join(parts: Sequence[Groups]) -> Groups:
    """All groups one after the other: counts and statistics are added, responses padded to the largest bucket."""
    rollouts, scores = [part.rollout for part in parts], [part.scores for part in parts]
    length = max(rollout.tokens.shape[2] for rollout in rollouts)
    stats = [rollout.stats for rollout in rollouts]
    return Groups(
        _chain(part.prompts for part in parts),
        Rollout(
            tokens=_padded([rollout.tokens for rollout in rollouts], length),
            mask=_padded([rollout.mask for rollout in rollouts], length),
            logps=_padded([rollout.logps for rollout in rollouts], length),
            finish_reasons=_chain(rollout.finish_reasons for rollout in rollouts),
            texts=_chain(rollout.texts for rollout in rollouts),
            stats=None if None in stats else sum(stats, GenerationStats()),
        ),
        Scores(
            total=np.concatenate([each.total for each in scores]),
            terms={name: np.concatenate([each.terms[name] for each in scores]) for name in scores[0].terms},
            valid=np.concatenate([each.valid for each in scores]),
            judge_status=_chain(each.judge_status for each in scores),
            verdicts=_chain(each.verdicts for each in scores),
            probabilities=_chain(each.probabilities for each in scores),
            counts=dict(sum((collections.Counter(each.counts) for each in scores), collections.Counter())),
        ),
    )


def write_groups(path: Path, groups: Groups) -> None:
    """Writes the file whole; its folder is made. Prompts are kept by their problems' ids."""
    rollout, scores = groups.rollout, groups.scores
    arrays = {"tokens": rollout.tokens, "mask": rollout.mask, "logps": rollout.logps}
    arrays |= {"total": scores.total, "valid": scores.valid}
    arrays |= {f"terms/{name}": values for name, values in scores.terms.items()}
    lists = {
        "problem_ids": [problem.problem_id for problem in groups.problems],
        "finish_reasons": rollout.finish_reasons,
        "texts": rollout.texts,
        "judge_status": scores.judge_status,
        "verdicts": scores.verdicts,
        "probabilities": scores.probabilities,
    }
    write_archive(path, arrays, {"lists": lists})


def read_groups(path: Path, to_prompt: Callable[[str], Prompt]) -> Groups:
    """What `write_groups` wrote; `to_prompt` makes the prompt of a problem from its id."""
    with np.load(path, allow_pickle=False) as archive:
        lists = json.loads(str(archive["lists"]))
        terms = {name.partition("/")[2]: archive[name] for name in archive.files if name.startswith("terms/")}
        judged = lists["judge_status"], _tuples(lists["verdicts"]), _tuples(lists["probabilities"])
        return Groups(
            [to_prompt(name) for name in lists["problem_ids"]],
            Rollout(archive["tokens"], archive["mask"], archive["logps"], lists["finish_reasons"], lists["texts"]),
            Scores(archive["total"], terms, archive["valid"], *judged, counts={}),
        )


def _tuples(rows: list[list]) -> list[list]:
    """What JSON has made lists of."""
    return [[None if each is None else tuple(each) for each in row] for row in rows]


def _chain(lists: Any) -> list:
    return [item for items in lists for item in items]


def _padded(arrays: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Concatenated, each with zeros up to `length`; tokens there are masked, so any id will do."""
    return np.concatenate([np.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]))) for x in arrays])
