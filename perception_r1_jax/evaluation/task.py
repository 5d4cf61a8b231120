"""What a policy is evaluated on, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict
from rich.console import Console

from perception_r1_jax.config import load_instruction
from perception_r1_jax.data import load_problems
from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.checker import Checker, load_checker
from perception_r1_jax.records import Problem


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What policies are evaluated on, and how.

    Attributes:
        name: of its files: the split's, or a benchmark's.
        problems: all that are asked, in this order; each id once.
        instruction: what follows each question after a space; "" is nothing.
        checker: tells what responses perceive; None leaves perception and probe without data.
        questions: the probe's question for each problem; empty without a checker.
        batch_size: problems of a shape with the engine at a time; where one is done, the next of its shape takes its
            place.
        max_new_tokens: limit of a response in tokens.
        probe_max_new_tokens: limit of the answer to a probe in tokens.
        stop_strings: texts that end a response, as in the run's rollouts.
        prompt_buckets: tokens of a batch's prompts; the processor drops longer ones.
        window_buckets: windows of a batch's prompts, likewise.
        workers: processes that compare answers.
        deadline_seconds: for one comparison.
    """

    name: str
    problems: Sequence[Problem]
    instruction: str
    checker: Checker | None
    questions: Sequence[str]
    batch_size: int
    max_new_tokens: int
    probe_max_new_tokens: int
    stop_strings: tuple[str, ...]
    prompt_buckets: Sequence[int]
    window_buckets: Sequence[int]
    workers: int
    deadline_seconds: float


def load_evaluation(config: ConfigDict, console: Console) -> Evaluation | None:
    """The evaluation that a run's config asks for, None where it asks for none; prints what became of the rows.

    Raises:
        UserError: the data or the checker cannot be used, or do not belong together.
    """
    settings = config.evaluation
    if not settings.split:
        return None
    checker = load_checker(settings.checker) if settings.checker else None
    problems, report = load_problems(config.data.path, settings.split, "evaluation.split")
    console.print(report.summary())
    problems = problems[: settings.problems or None]
    return Evaluation(
        name=settings.split,
        problems=problems,
        instruction=load_instruction(config),
        checker=checker,
        questions=probe_questions(checker, problems) if checker else (),
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        probe_max_new_tokens=settings.probe_max_new_tokens,
        stop_strings=config.rollout.stop_strings,
        prompt_buckets=config.rollout.prompt_buckets,
        window_buckets=config.rollout.window_buckets,
        workers=config.reward.workers,
        deadline_seconds=config.reward.deadline_seconds,
    )


def probe_questions(checker: Checker, problems: Sequence[Problem]) -> list[str]:
    """The probe's question for each problem.

    Raises:
        UserError: the checker has none for a problem, whose row is of another data set.
    """
    questions = []
    for problem in problems:
        try:
            question, _ = checker.probe(problem.row)
        except Exception as error:
            raise UserError(
                f"config.evaluation.checker has no question for the problem {problem.problem_id!r}: "
                f"{type(error).__name__}: {error}. Set it to the checker of this data, or to '' for none."
            ) from error
        questions.append(question)
    return questions
