"""Runs the ablation's runs one after another, each in a process of its own; what is done is not done again."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from perception_r1_jax.claim.plan import BEGUN, FINISHED, NEW, RECORDED, PlannedRun, describe
from perception_r1_jax.claim.record import Record, record_run
from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json
from perception_r1_jax.report.wording import duration, p_value, percent
from perception_r1_jax.training.lock import lock_folder
from perception_r1_jax.training.stopping import StopRequest

USUAL_SECONDS = 360.0
"""Of a run with `configs/mini.py` on two cores, for the estimate before one has been measured."""

POLL_SECONDS = 0.2


def run_all(runs: Sequence[PlannedRun], script: Path, console: Console) -> bool:
    """Brings every run to its record, with `script` for training.

    Returns:
        Whether all runs are recorded; false where SIGINT or SIGTERM stopped the one under way, which is then saved.

    Raises:
        UserError: something there was made with another config, another process is at work, or a training failed.
    """
    states = {run.name: run.state() for run in runs}
    seconds = [read_json(run.record)["result"]["seconds"] for run in runs if states[run.name] == RECORDED]
    console.print(_announce(runs, states, seconds))
    left = [run for run in runs if states[run.name] != RECORDED]
    if not left:
        return True
    with lock_folder(left[0].workdir.parent, "--runs") as lock, StopRequest(console) as stop:
        for place, run in enumerate(left, 1):
            if states[run.name] != FINISHED:
                console.rule(f"{run.name}, {place} of {len(left)}")
                if not _train(run, script, lock.fileno(), stop):
                    console.print(f"stopped in {run.name}; the same command goes on from there.")
                    return False
            record = record_run(run)
            seconds.append(record.result["seconds"])
            console.print(f"{_summary(record)}; left: {_estimate(left[place:], seconds)}")
            if stop.received and place < len(left):
                console.print(f"stopped after {run.name}; the same command goes on from there.")
                return False
    return True


def record_again(runs: Sequence[PlannedRun], console: Console) -> None:
    """Makes the records of all finished runs anew from their working directories, and trains nothing.

    Raises:
        UserError: a directory was made with another config or of other problems, or cannot be recorded.
    """
    finished = [run for run in runs if run.progress() == FINISHED]
    for run in finished:
        console.print(_summary(record_run(run)))
    left = [run for run in runs if run not in finished]
    console.print(f"{len(finished)} of {len(runs)} runs graded and recorded again; not finished: {describe(left)}")


def _announce(runs: Sequence[PlannedRun], states: dict[str, str], seconds: Sequence[float]) -> str:
    by_state = {state: [run for run in runs if states[run.name] == state] for state in (RECORDED, FINISHED, BEGUN, NEW)}
    words = {
        RECORDED: "recorded already",
        FINISHED: "finished, to be recorded",
        BEGUN: "begun, to go on",
        NEW: "to begin",
    }
    lines = [f"  {words[state]:<25} {len(found):>2}  {describe(found)}" for state, found in by_state.items() if found]
    estimate = _estimate(by_state[BEGUN] + by_state[NEW], seconds)
    return "\n".join([f"The ablation: {len(runs)} runs, {estimate}.", *lines])


def _estimate(runs: Sequence[PlannedRun], seconds: Sequence[float]) -> str:
    """What is left, from the seconds of finished runs."""
    if not runs:
        return "no training"
    usual = statistics.median(seconds) if seconds else USUAL_SECONDS
    source = f"measured on {len(seconds)}" if seconds else "on 2 cores"
    return f"{len(runs)} to train, about {duration(len(runs) * usual)} ({duration(usual)} a run, {source})"


def _train(run: PlannedRun, script: Path, lock: int, stop: StopRequest) -> bool:
    """Trains to the end; false where a stop request came before."""
    status = _wait([sys.executable, str(script), *run.arguments], lock, stop)
    finished = (run.workdir / "result.json").is_file()
    if not finished and not stop.received:
        raise UserError(
            f"the training of {run.name} ended with status {status} and without a result; its last lines say why. "
            "The same command goes on from its checkpoint."
        )
    return finished


def _wait(command: Sequence[str], lock: int, stop: StopRequest) -> int:
    """Runs a command; its exit status. A stop request is passed on once, a second one ends both at once.

    The process inherits the lock: where it outlives this one, nobody else trains there.
    The process has a session of its own: Ctrl-C in a terminal would reach it twice otherwise, and twice is at once.
    """
    with subprocess.Popen(command, start_new_session=True, pass_fds=[lock]) as process:
        try:
            while process.poll() is None and not stop.received:
                time.sleep(POLL_SECONDS)
            if stop.received:
                process.terminate()
            return process.wait()
        except KeyboardInterrupt:
            process.terminate()
            raise


def _summary(record: Record) -> str:
    """A finished run in one line."""
    result = record.result
    moves = (
        f"{field} {percent(result[f'{field}_before'])} to {percent(result[f'{field}_after'])} "
        f"(p {p_value(result[f'mcnemar_{field}']['p'])})"
        for field in ("accuracy", "perception", "probe")
    )
    return f"{record.name}: {', '.join(moves)}, {duration(result['seconds'])}"
