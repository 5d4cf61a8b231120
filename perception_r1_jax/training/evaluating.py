"""The evaluations of a run: before its first step and after its last, each made once."""

from __future__ import annotations

import time

from perception_r1_jax.evaluation.evaluate import evaluate
from perception_r1_jax.evaluation.files import Evaluated, items_file, read_evaluated, remove_evaluated, write_evaluated
from perception_r1_jax.evaluation.shown import describe
from perception_r1_jax.evaluation.summary import summarise
from perception_r1_jax.training.setup import Run
from perception_r1_jax.training.stopping import Stopped, StopRequest


def forget_later_evaluations(run: Run) -> None:
    """Removes what was evaluated after the point where the run goes on; all of it where the run begins."""
    if run.evaluation:
        remove_evaluated(run.workdir, run.evaluation.name, run.step + 1 if run.step else 0)


def evaluate_policy(run: Run, stop: StopRequest) -> bool:
    """Evaluates the policy after `run.step` steps, where the config asks for it and its file is not there yet.

    Returns:
        False where a stop request has ended the evaluation, which leaves no file.
    """
    if run.evaluation is None:
        return True
    path = items_file(run.workdir, run.evaluation.name, run.step)
    if not path.is_file():
        evaluated = _evaluate(run, stop)
        if evaluated is None:
            run.console.print("stopped during an evaluation; the same command begins it again.")
            return False
        write_evaluated(path, evaluated)
    run.console.print(f"evaluation after step {run.step}: {describe(read_evaluated(path))}")
    return True


def _evaluate(run: Run, stop: StopRequest) -> Evaluated | None:
    started = time.monotonic()
    run.engine.load(run.state.params)
    try:
        items = evaluate(run.evaluation, run.engine, run.processor, run.console, stop.check)
    except Stopped:
        return None
    finally:
        run.engine.unload()  # makes room for the update
    return Evaluated(items, summarise(items, time.monotonic() - started))


def before_and_after(run: Run) -> tuple[Evaluated | None, Evaluated | None]:
    """The evaluations of the starting policy and of the current one, None where there is none."""
    if run.evaluation is None:
        return None, None
    before, after = (read_evaluated(items_file(run.workdir, run.evaluation.name, step)) for step in (0, run.step))
    return before, after
