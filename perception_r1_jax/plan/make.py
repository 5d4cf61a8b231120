"""Makes a plan."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ml_collections import ConfigDict

from perception_r1_jax.config import notes
from perception_r1_jax.errors import UserError
from perception_r1_jax.inference.reshard import host_memory
from perception_r1_jax.models import ModelConfig, count_params
from perception_r1_jax.plan import shapes
from perception_r1_jax.plan.advice import advise
from perception_r1_jax.plan.measure import Measured, measure
from perception_r1_jax.plan.programs import Program
from perception_r1_jax.plan.report import Plan
from perception_r1_jax.plan.run import PlannedRun, plan_run, run_programs
from perception_r1_jax.plan.topologies import Target, find_target

COMPILERS = 4
"""At once, at most. Each takes a core."""

COMPILER_BYTES = 9 * 10**9
"""What a process has come to that compiled one program after another for 64 devices."""


def make_plan(config: ConfigDict, topology: str, on_program: Callable[[Measured], None], *, only: str = "") -> Plan:
    """Compiles the programs of a run.

    Args:
        config: resolved.
        topology: as of `find_target`.
        on_program: called after each program.
        only: how the names of the programs to compile begin; "" compiles all.

    Raises:
        UserError: topology, models or mesh that cannot be planned for, no program of such a name, or a compiler's
            process that was killed.
    """
    target = find_target(topology)
    run = plan_run(config, target)
    made, problems = run_programs(run)
    chosen = [program for program in made if program.name.startswith(only)]
    if not chosen:
        stages = ", ".join(f"{stage}/..." for stage in dict.fromkeys(program.name.split("/")[0] for program in made))
        raise UserError(f"no program's name begins with {only!r}: they are {stages}.")
    compilers = max(1, min(os.cpu_count(), COMPILERS, len(chosen), host_memory() // COMPILER_BYTES))
    shortest_last = sorted(chosen, key=lambda program: program.name.startswith(("rollout/", "evaluation/", "probe/")))
    if target.is_tpu:
        # libtpu compiles one program at a time in a process, and not all of that on every core.
        pool = ProcessPoolExecutor(compilers, multiprocessing.get_context("spawn"), _start, (config, topology))
        submit = lambda program: pool.submit(_measure_named, program.name)  # noqa: E731
    else:
        pool = ThreadPoolExecutor(compilers)
        submit = lambda program: pool.submit(_measure, run, program, target)  # noqa: E731
    with pool:
        programs = _collect(submit, shortest_last, compilers, on_program)
    programs = [programs[program.name] for program in chosen]
    advice = {program.name: advise(run, program) for program in programs if not program.fits}
    return Plan(target, _layout(run), [*run.problems, *problems], programs, advice, only)


def _collect(
    submit: Callable[[Program], Future[Measured]],
    programs: Sequence[Program],
    at_once: int,
    on_program: Callable[[Measured], None],
) -> dict[str, Measured]:
    """What was measured, by name. A program begins when another has come back, so after an error none begins."""
    waiting, running, measured = deque(programs), {}, {}
    while waiting or running:
        while waiting and len(running) < at_once:
            program = waiting.popleft()
            running[submit(program)] = program
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            program = running.pop(future)
            try:
                measured[program.name] = future.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a process that compiled was killed, most likely because this machine's memory is full: one takes "
                    f"up to {COMPILER_BYTES / 1e9:.0f} GB. Free some, or plan a part at a time with --only."
                ) from error
            except Exception as error:
                error.add_note(f"This was {program.name}, of the programs of this run.")
                raise
            on_program(measured[program.name])
    return measured


def _measure(run: PlannedRun, program: Program, target: Target) -> Measured:
    model = run.judge if program.name.startswith("judge/") else run.policy
    return measure(program, target, _share_of_full_attention(model))


_asked: dict[str, Any] = {}
"""In a process of the pool: the arguments of `make_plan`."""


def _start(config: ConfigDict, topology: str) -> None:
    _asked.update(config=config, topology=topology)


@functools.cache
def _asked_run() -> tuple[PlannedRun, Target, dict[str, Program]]:
    """Made with a process's first program, whose error it is where it fails."""
    target = find_target(_asked["topology"])
    run = plan_run(_asked["config"], target)
    return run, target, {program.name: program for program in run_programs(run)[0]}


def _measure_named(name: str) -> Measured:
    run, target, programs = _asked_run()
    return _measure(run, programs[name], target)


def _share_of_full_attention(model: ModelConfig) -> float:
    """How often a model's only conditional takes its second branch: full attention in the vision tower."""
    vision = model.vision
    return len(vision.full_attention_layers) / vision.depth if vision else 0.0


def _layout(run: PlannedRun) -> list[str]:
    mesh = " x ".join(f"{name} {size}" for name, size in run.mesh.shape.items())
    lines = [
        f"policy {count_params(run.policy) / 1e9:.2f} B, training over {mesh}, "
        f"at most {shapes.micro_batches(run.config)} micro-batches a step"
    ]
    lines.append(f"rollouts: {run.rollouts.layout()}")
    if run.judging:
        lines.append(f"judge {count_params(run.judge) / 1e9:.2f} B: {run.judging.layout()}")
    return [*lines, *(f"note: {note}" for note in notes(run.config, run.mesh.shape))]
