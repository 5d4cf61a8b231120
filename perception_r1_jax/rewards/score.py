"""From a rollout's texts and their judgements to `Scores`: every reward term of every response."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perception_r1_jax.judge.verdicts import NONE, Judgement
from perception_r1_jax.records import Problem, Scores
from perception_r1_jax.rewards.accuracy import Accuracy, AccuracyPool
from perception_r1_jax.rewards.cheap import CheapRewards, cheap_rewards
from perception_r1_jax.rewards.combine import combine
from perception_r1_jax.rewards.custom import RewardFunction, custom_reward, load_reward
from perception_r1_jax.rewards.failures import resolve_failures
from perception_r1_jax.rewards.grading import OK
from perception_r1_jax.rewards.overlong import overlong_penalty
from perception_r1_jax.rewards.perception import visual_reward
from perception_r1_jax.rewards.tally import Tally

if TYPE_CHECKING:
    from ml_collections import ConfigDict

WEIGHTS = {"format": 0.1, "accuracy": 0.9, "visual": 0.7, "repetition": 1.0}
"""Perception-R1's weights; the repetition term is negative itself."""


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """How responses are scored; the defaults are the published run's.

    Attributes:
        weights: name -> weight of "format", "accuracy", "visual", "repetition", of "custom" beside `custom`, and of
            "overlong" beside `overlong_tokens`.
        ngram_size: words that make a repetition.
        repetition_max_penalty: the penalty that a response of one repeated n-gram approaches.
        fidelity: "default" or "paper".
        on_judge_failure: one of `failures.POLICIES`. Other terms' failures always drop the sample.
        custom: the user's own reward function, or None.
        overlong_tokens: how far below `max_tokens` the penalty for length begins; 0 for none.
        max_tokens: the longest response allowed.
        visual_mode: one of `perception.VISUAL_MODES`.
    """

    weights: Mapping[str, float] = dataclasses.field(default_factory=WEIGHTS.copy)
    ngram_size: int = 20
    repetition_max_penalty: float = -2.0
    fidelity: str = "default"
    on_judge_failure: str = "drop_sample"
    custom: RewardFunction | None = None
    overlong_tokens: int = 0
    max_tokens: int = 4096
    visual_mode: str = "hard"

    @classmethod
    def from_config(cls, config: ConfigDict) -> RewardSettings:
        """The settings of a run, its own reward function imported.

        Raises:
            UserError: `config.reward.function` names nothing that can be called.
        """
        reward = config.reward
        custom = load_reward(reward.function) if reward.function else None
        names = [*WEIGHTS, *["custom"] * bool(custom), *["overlong"] * bool(reward.overlong_tokens)]
        return cls(
            weights={name: reward[f"{name}_weight"] for name in names},
            ngram_size=reward.ngram_size,
            repetition_max_penalty=reward.repetition_max_penalty,
            fidelity=config.fidelity,
            on_judge_failure=config.judge.on_failure,
            custom=custom,
            overlong_tokens=reward.overlong_tokens,
            max_tokens=config.rollout.response_buckets[-1],
            visual_mode=reward.visual_mode,
        )


def score_responses(
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    judgements: Sequence[Sequence[Judgement]] | None,
    pool: AccuracyPool,
    settings: RewardSettings,
    *,
    lengths: np.ndarray | None = None,
) -> Scores:
    """Scores G responses to each of N problems; failures are counted, and logged with their problems.

    Args:
        problems: N of them.
        texts: [N][G] responses.
        judgements: [N][G], or None for a run without a judge, where the visual term adds nothing.
        pool: grades the answers.
        settings: weights and policies.
        lengths: [N, G] tokens of the responses, where `settings` has a penalty for them.

    Raises:
        RewardFailed: a judgement failed and `settings.on_judge_failure` is "abort".
    """
    cheap = cheap_rewards(problems, texts, pool, settings)
    return complete_scores(problems, texts, judgements, cheap, settings, lengths=lengths)


def complete_scores(
    problems: Sequence[Problem],
    texts: Sequence[Sequence[str]],
    judgements: Sequence[Sequence[Judgement]] | None,
    cheap: Sequence[CheapRewards],
    settings: RewardSettings,
    *,
    lengths: np.ndarray | None = None,
) -> Scores:
    """The second half of `score_responses`, for N problems with `cheap` rewards that are there already."""
    if judgements is None:
        judgements = [[unjudged(problem)] * len(row) for problem, row in zip(problems, texts)]
    tally = Tally()
    terms = {
        "format": np.array([group.format for group in cheap], np.float64),
        "accuracy": _accuracy_term(problems, cheap, tally),
        "visual": _visual_term(problems, judgements, settings, tally),
        "repetition": np.array([group.repetition for group in cheap], np.float64),
    }
    if settings.custom:
        terms["custom"] = _custom_term(settings.custom, problems, texts, tally)
    if settings.overlong_tokens:
        penalty = functools.partial(overlong_penalty, limit=settings.max_tokens, margin=settings.overlong_tokens)
        terms["overlong"] = _per_response(penalty, lengths)
    tally.warn()
    failed = {name: np.isnan(terms[name]) for name in terms}
    failed["visual"] = _per_response(lambda judgement: judgement.failed, judgements).astype(bool)
    policies = dict.fromkeys(failed, "drop_sample") | {"visual": settings.on_judge_failure}
    resolved, valid = resolve_failures(terms, failed, policies, [problem.problem_id for problem in problems])
    return Scores(
        total=np.where(valid, combine(resolved, settings.weights), 0.0).astype(np.float32),
        terms={name: values.astype(np.float32) for name, values in terms.items()},
        valid=valid,
        judge_status=[[judgement.status for judgement in row] for row in judgements],
        verdicts=[[judgement.verdicts for judgement in row] for row in judgements],
        probabilities=[[judgement.probabilities for judgement in row] for row in judgements],
        counts={**tally.counts, "dropped": int((~valid).sum())},
    )


def unjudged(problem: Problem) -> Judgement:
    """Stands for the judgement that nobody was asked for."""
    return Judgement(None, len(problem.annotations), 0, NONE)


def _per_response(function: Callable, rows: Sequence[Sequence]) -> np.ndarray:
    return np.array([[function(item) for item in row] for row in rows], np.float64)


def _accuracy_term(problems, cheap: Sequence[CheapRewards], tally: Tally) -> np.ndarray:
    for problem, group in zip(problems, cheap):
        for result in group.accuracy:
            tally.add("accuracy", result.status, problem.problem_id, failed=result.status != OK)
    return _per_response(_value_or_nan, [group.accuracy for group in cheap])


def _value_or_nan(accuracy: Accuracy) -> float:
    return math.nan if accuracy.value is None else accuracy.value


def _visual_term(problems, judgements, settings: RewardSettings, tally: Tally) -> np.ndarray:
    for problem, row in zip(problems, judgements):
        for judgement in row:
            status, detail = judgement.status, judgement.detail
            tally.add("judge", status, problem.problem_id, failed=judgement.failed, detail=detail)
    reward = functools.partial(visual_reward, fidelity=settings.fidelity, mode=settings.visual_mode)
    return _per_response(reward, judgements)


def _custom_term(function: RewardFunction, problems, texts, tally: Tally) -> np.ndarray:
    values = []
    for problem, row in zip(problems, texts):
        outcomes = [custom_reward(function, problem.row, text) for text in row]
        for _, reason in outcomes:
            status = "failed" if reason else OK
            tally.add("custom", status, problem.problem_id, failed=bool(reason), detail=reason or "")
        values.append([value for value, _ in outcomes])
    return np.array(values, np.float64)
