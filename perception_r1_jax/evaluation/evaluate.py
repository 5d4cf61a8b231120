"""A policy's greedy responses to fixed problems, graded, and what it sees when it is asked for a single fact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.evaluation.grade import grade
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.replies import Reply, reply_greedily
from perception_r1_jax.evaluation.task import Evaluation
from perception_r1_jax.inference import Engine
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Problem, Prompt
from perception_r1_jax.rewards.accuracy import AccuracyPool


def evaluate(
    evaluation: Evaluation,
    engine: Engine,
    processor: Processor,
    console: Console,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Item] | None:
    """Asks all problems, and then all probes: the same pictures, and the question alone.

    Answers are compared as by default under either fidelity.

    Args:
        evaluation: the problems, and how they are asked.
        engine: holds the policy's parameters.
        processor: the policy's.
        console: shows a progress bar where it is a terminal.
        stopped: asked as replies come; true ends the evaluation.

    Returns:
        An item for each problem, in their order; None where `stopped` has ended it.
    """
    probes = [
        dataclasses.replace(problem, question=question)
        for problem, question in zip(evaluation.problems, evaluation.questions)
    ]
    asked = _prompts(lambda problem: processor.prompt(problem, suffix=evaluation.instruction), evaluation.problems)
    probed = _prompts(lambda problem: processor.prompt(problem, markers=False), probes)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        AccuracyPool(evaluation.workers, evaluation.deadline_seconds) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(f"evaluating on {evaluation.name}", total=len(evaluation.problems) + len(probes))
        ask = functools.partial(
            reply_greedily,
            engine,
            processor,
            batch_size=evaluation.batch_size,
            prompt_buckets=evaluation.prompt_buckets,
            window_buckets=evaluation.window_buckets,
        )
        responses: dict[str, Reply] = {}
        answers: dict[str, Reply] = {}
        for found, replies in (
            (responses, ask(asked, max_new_tokens=evaluation.max_new_tokens)),
            (answers, ask(probed, max_new_tokens=evaluation.probe_max_new_tokens)),
        ):
            for problem_id, reply in replies:
                found[problem_id] = reply
                progress.advance(task)
                if stopped():
                    return None
        return grade(evaluation, responses, answers, pool)


def _prompts(make: Callable[[Problem], Prompt], problems: Sequence[Problem]) -> Iterator[Prompt | DroppedProblem]:
    for problem in problems:
        try:
            yield make(problem)
        except DroppedProblem as dropped:
            yield dropped
