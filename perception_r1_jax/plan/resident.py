"""What lies on a device together while a run draws and judges: known before anything is compiled or read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from jax.sharding import Mesh
from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError
from perception_r1_jax.host_memory import check_host_memory
from perception_r1_jax.inference.reshard import device_memory
from perception_r1_jax.models import ModelConfig
from perception_r1_jax.plan.choosing import ChoiceCalls, choosing_cache_bytes
from perception_r1_jax.plan.programs import CACHE, device_bytes
from perception_r1_jax.plan.run import (
    PlannedRun,
    drawing_calls,
    held_while_drawing,
    judge_calls,
    kept_of_judge,
    plan_models,
)
from perception_r1_jax.plan.serving import Calls, served_params, serving_held
from perception_r1_jax.plan.topologies import GIB, LOCAL, Target

POLICY, OPTIMIZER, ROLLOUTS, ROLLOUT_CACHE, JUDGE, JUDGE_CACHE = (
    "the policy's parameters",
    "its optimizer",
    "its copy that rolls out",
    "the rollouts' cache",
    "the judge's weights",
    "the judge's cache",
)
SETTINGS: Mapping[str, str] = {
    POLICY: "config.mesh.fsdp over more devices, or config.lora.modules",
    OPTIMIZER: "config.optimizer.host_memory=True, config.optimizer.moments_dtype=bfloat16, or config.lora.modules",
    ROLLOUTS: "a smaller config.rollout.weights_memory splits it over more devices",
    ROLLOUT_CACHE: "a smaller config.rollout.cache_memory",
    JUDGE: (
        "config.judge.weights_int8=True, config.judge.host_memory=True with config.judge.streaming=False, or a "
        "smaller config.judge.weights_memory"
    ),
    JUDGE_CACHE: "config.judge.streaming=False, or a smaller config.judge.cache_memory",
}
"""What makes each part smaller."""


def check_room(config: ConfigDict, policy: ModelConfig, judge: ModelConfig | None, mesh: Mesh) -> None:
    """Raises UserError where what lies on a device together at the config's limits is more than its memory.

    Also where not even one response to the longest prompts has room in the cache: no run is to end at one of them. What
    programs need beside it is not counted: only compiling them tells (`scripts/plan.py`).

    Args:
        config: of a run, resolved.
        policy: the policy's shapes.
        judge: the judge's; None for none on this mesh.
        mesh: of the run.
    """
    if config.optimizer.host_memory:
        check_host_memory("optimizer.host_memory", mesh)
    memory = device_memory(mesh.local_mesh.devices.flat[0])
    run = plan_models(config, Target(LOCAL, [*mesh.devices.flat], memory, None), policy, judge)
    if run.problems:
        raise UserError(run.problems[0])
    for calls in drawing_calls(run):
        serving_held(calls)
    for when, parts in together(run).items():
        total = sum(parts.values())
        if total > memory:
            lines = [f"  {size / GIB:9.2f} GiB  {name}: {SETTINGS[name]}" for name, size in parts.items() if size]
            raise UserError(
                f"{when} {total / GIB:.2f} GiB would lie on a device, which has {memory / GIB:.2f} GiB. What it is, "
                "and what makes it smaller:\n" + "\n".join(lines)
            )


def together(run: PlannedRun) -> dict[str, dict[str, int]]:
    """Bytes of a device by part, for each time at which other parts lie there."""
    state = {POLICY: device_bytes((run.state.params, run.reference)), OPTIMIZER: device_bytes(run.state.opt_state)}
    cache = device_bytes(held_while_drawing(run).get(CACHE))
    copy = {ROLLOUTS: device_bytes(served_params(run.rollouts))}
    drawing = {**state, **copy, ROLLOUT_CACHE: cache}
    if run.judging is None:
        return {"while responses are drawn": drawing}
    waiting = {JUDGE: device_bytes(kept_of_judge(run))}
    judging = {JUDGE: device_bytes(served_params(run.judging)), JUDGE_CACHE: _judge_cache(run)}
    if run.config.judge.streaming:
        return {"while responses are drawn and judged": {**drawing, **judging}}
    kept = copy if run.config.rollout.max_rounds > 1 else {}  # for the step's next draw
    return {"while responses are drawn": {**drawing, **waiting}, "while they are judged": {**state, **kept, **judging}}


def _judge_cache(run: PlannedRun) -> int:
    """At the limits of the config; nothing where these have no room, as shorter requests may have."""
    with contextlib.suppress(UserError):
        return max(map(_cache_bytes, judge_calls(run)))
    return 0


def _cache_bytes(calls: Calls | ChoiceCalls) -> int:
    return choosing_cache_bytes(calls) if isinstance(calls, ChoiceCalls) else device_bytes(serving_held(calls)[CACHE])
