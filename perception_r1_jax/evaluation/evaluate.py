"""A policy's greedy responses to fixed problems, graded, and what it sees when it is asked for a single fact."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from perception_r1_jax.data.errors import DroppedProblem
from perception_r1_jax.evaluation.grade import grade
from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.evaluation.task import Evaluation
from perception_r1_jax.inference import Engine, Sampling
from perception_r1_jax.inference.engine import ignore_progress
from perception_r1_jax.inference.replies import Bucket, Reply, prompts_or_faults, reply
from perception_r1_jax.processing import Processor, pick_buckets
from perception_r1_jax.records import Prompt
from perception_r1_jax.rewards.accuracy import AccuracyPool


def evaluate(
    evaluation: Evaluation,
    engine: Engine,
    processor: Processor,
    console: Console,
    on_progress: Callable[[int], None] = ignore_progress,
) -> list[Item]:
    """Asks all problems, and then all probes: the same pictures, and the question alone.

    Answers are compared as by default under either fidelity.

    Args:
        evaluation: the problems, and how they are asked.
        engine: holds the policy's parameters.
        processor: the policy's.
        console: shows a progress bar where it is a terminal.
        on_progress: as of `Engine.generate`: what it raises ends the evaluation.

    Returns:
        An item for each problem, in their order.
    """
    probes = [
        dataclasses.replace(problem, question=question)
        for problem, question in zip(evaluation.problems, evaluation.questions)
    ]
    asked = prompts_or_faults(functools.partial(processor.prompt, suffix=evaluation.instruction), evaluation.problems)
    probed = prompts_or_faults(functools.partial(processor.prompt, markers=False), probes)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with (
        AccuracyPool(evaluation.workers, evaluation.deadline_seconds) as pool,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(f"evaluating on {evaluation.name}", total=len(evaluation.problems) + len(probes))
        reply_to = functools.partial(
            _reply_greedily,
            evaluation,
            engine,
            processor,
            advance=functools.partial(progress.advance, task),
            on_progress=on_progress,
        )
        responses = reply_to(asked, evaluation.max_new_tokens)
        answers = reply_to(probed, evaluation.probe_max_new_tokens)
        return grade(evaluation, responses, answers, pool)


def _reply_greedily(
    evaluation: Evaluation,
    engine: Engine,
    processor: Processor,
    prompts: Iterable[Prompt | DroppedProblem],
    max_new_tokens: int,
    *,
    advance: Callable[[], None],
    on_progress: Callable[[int], None],
) -> dict[str, Reply]:
    """The reply to each problem by its id; `advance` is called with each."""
    replies: dict[str, Reply] = {}
    sampling = Sampling(
        max_new_tokens,
        processor.stop_ids,
        processor.pad_id,
        temperature=0.0,
        banned_ids=processor.banned_ids,
        stop_strings=evaluation.stop_strings,
    )

    def bucket_of(prompt: Prompt) -> Bucket:
        return pick_buckets([prompt], evaluation.prompt_buckets, evaluation.window_buckets)

    def keep(problem_id: str, said: Reply) -> None:
        replies[problem_id] = said
        advance()

    reply(
        engine,
        processor,
        prompts,
        sampling,
        jax.random.key(0),  # greedy: never drawn from
        batch_size=evaluation.batch_size,
        bucket_of=bucket_of,
        on_reply=keep,
        on_progress=on_progress,
    )
    return replies
