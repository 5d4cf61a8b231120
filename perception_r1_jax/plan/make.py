"""Makes a plan."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ml_collections import ConfigDict

from perception_r1_jax.config import rows_note
from perception_r1_jax.errors import UserError
from perception_r1_jax.models import ModelConfig, count_params
from perception_r1_jax.plan import shapes
from perception_r1_jax.plan.advice import advise
from perception_r1_jax.plan.measure import Measured, measure
from perception_r1_jax.plan.programs import Program
from perception_r1_jax.plan.report import Plan
from perception_r1_jax.plan.run import PlannedRun, plan_run, run_programs
from perception_r1_jax.plan.topologies import find_target

COMPILERS = 4
"""At once, at most. Each takes a core and a few GB of memory."""


def make_plan(config: ConfigDict, topology: str, on_program: Callable[[Measured], None], *, only: str = "") -> Plan:
    """Compiles the programs of a run.

    Args:
        config: resolved.
        topology: as of `find_target`.
        on_program: called after each program, of several threads.
        only: how the names of the programs to compile begin; "" compiles all.

    Raises:
        UserError: topology, models or mesh that cannot be planned for, or no program of such a name.
    """
    target = find_target(topology)
    run = plan_run(config, target)
    made, problems = run_programs(run)
    chosen = [program for program in made if program.name.startswith(only)]
    if not chosen:
        raise UserError(f"no program's name begins with {only!r}: they are rollout/..., judge/... and train/...")

    def compiled(program: Program) -> Measured:
        model = run.judge if program.name.startswith("judge/") else run.policy
        try:
            measured = measure(program, target, _share_of_full_attention(model))
        except Exception as error:
            pool.shutdown(wait=False, cancel_futures=True)
            error.add_note(f"This was {program.name}, of the programs of this run.")
            raise
        on_program(measured)
        return measured

    with ThreadPoolExecutor(min(os.cpu_count(), COMPILERS)) as pool:
        programs = list(pool.map(compiled, reversed(chosen)))[::-1]  # the longest, of training, stand last
    advice = {program.name: advise(run, program) for program in programs if not program.fits}
    return Plan(target, _layout(run), [*run.problems, *problems], programs, advice, only)


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
    return [*lines, *(f"note: {note}" for note in rows_note(run.config, run.mesh.shape))]
