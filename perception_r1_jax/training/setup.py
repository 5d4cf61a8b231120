"""From a config to everything the loop works with: models, data, mesh, judge, state and programs."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from perception_r1_jax.config import arithmetic, load_instruction, optimizer_steps, resolve
from perception_r1_jax.data import load_problems
from perception_r1_jax.data.pipeline import PromptBatches, make_pipeline
from perception_r1_jax.evaluation.task import Evaluation, load_evaluation
from perception_r1_jax.grpo.kl import has_kl
from perception_r1_jax.grpo.step import LogProbs, TrainStep
from perception_r1_jax.inference import Engine
from perception_r1_jax.inference.rollout import check_stop_strings, make_engine
from perception_r1_jax.judge.cache import CachedJudge
from perception_r1_jax.judge.failure_window import FailureWindow
from perception_r1_jax.models import ModelConfig, Params, base_params, check_backend, count_params, load_config
from perception_r1_jax.plan.resident import check_room
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Prompt, TrainBatch
from perception_r1_jax.rewards.score import RewardSettings
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.checkpoints import Checkpoints, has_checkpoint
from perception_r1_jax.training.console import RunConsole
from perception_r1_jax.training.continuing import Beginning, begin_or_continue
from perception_r1_jax.training.dynamic_sampling import read_carried
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.judge import has_own_model, judge_family, make_judge
from perception_r1_jax.training.models import keep_side_files, prepare_model, tokenizer_in_place
from perception_r1_jax.training.replay import rollouts_to_replay
from perception_r1_jax.training.run_record import hash_model, hash_problems, hash_texts, make_record
from perception_r1_jax.training.state import TrainState
from perception_r1_jax.weights import load_params, locate_model

MAKES_GROUPS = (
    "config.format_instruction",
    "config.judge.",
    "config.model.",
    "config.reward.",
    "config.rollout.",
    "hashes.judge",
    "hashes.prompts",
)
"""What scored groups depend on beside the policy, by how the names begin: of what has changed none are carried over."""


@dataclasses.dataclass
class Run:
    """A run about to start or to continue.

    Attributes:
        config, workdir, console: what the run was asked for, and where it writes.
        setup_seconds: what preparing took.
        processor: of the policy.
        batches: the data, at the position where the run goes on.
        settings: how responses are scored.
        mesh: for policy and judge.
        engine: makes the rollouts; the loop gives it the current policy.
        judge: None in a run without the visual reward.
        judge_failures: ends the run where there are too many.
        state: parameters, optimizer, counters.
        step: steps done so far.
        checkpoints: where the state is saved.
        replays: step -> file of the rollout that it takes instead of drawing one.
        evaluation: what the policy is evaluated on before the first step and after the last; None for no evaluation.
        train_step: the update.
        carried: scored groups that the last step left to the next (`training.dynamic_sampling`); None for none.
        add_log_probs: puts into a batch the log-probs of the policy with these parameters, where several updates
            follow, and those of the reference, where there is a KL term.
    """

    config: ConfigDict
    workdir: Path
    console: Console
    setup_seconds: float
    processor: Processor
    batches: PromptBatches
    settings: RewardSettings
    mesh: Mesh
    engine: Engine
    judge: CachedJudge | None
    judge_failures: FailureWindow
    state: TrainState
    step: int
    checkpoints: Checkpoints
    replays: dict[int, Path]
    evaluation: Evaluation | None
    train_step: TrainStep
    carried: Groups | None
    add_log_probs: Callable[[Params, TrainBatch], TrainBatch]


def prepare(config: ConfigDict, workdir: Path) -> Run:
    """Checks and loads all that a run needs; from the latest checkpoint in `workdir` where there is one.

    Raises:
        UserError, OSError: a config, data or model that cannot be used; the message says what to do.
    """
    # -- What can be checked before the first device is touched.
    started, workdir, console = time.monotonic(), workdir.resolve(), RunConsole()
    config = resolve(config)
    settings = RewardSettings.from_config(config)
    problems, report = load_problems(config.data.path, config.data.split)
    console.print(report.summary())
    evaluation = load_evaluation(config, console)

    # -- Models: their directories, shapes and processors.
    policy_dir, judge_dir = _model_directories(config, workdir)
    keep_side_files(policy_dir, tokenizer_in_place(config.model), workdir / "model")
    model = load_config(workdir / "model")
    processor = Processor.from_directory(
        workdir / "model",
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
        fidelity=config.fidelity,
        max_prompt_tokens=config.rollout.prompt_buckets[-1],
        max_windows=config.rollout.window_buckets[-1],
    )
    check_stop_strings(config.rollout, processor)

    # -- Data: problems in shuffled order, prepared ahead.
    instruction = load_instruction(config)
    to_prompt = functools.partial(processor.prompt, suffix=instruction)
    batches = make_pipeline(
        problems,
        to_prompt,
        batch_size=config.rollout.prompts_per_step,
        seed=config.seed,
        shuffle=config.data.shuffle,
        prefetch=config.data.prefetch,
    )

    # -- Mesh and judge.
    mesh = make_mesh(**config.mesh)
    check_backend(config.model.attention, mesh.devices.flat[0].platform)
    check_room(config, model, load_config(locate_model(judge_dir).model_dir) if judge_dir else None, mesh)
    judge = make_judge(config, judge_dir, mesh)
    console.print(
        arithmetic(
            config,
            problems=len(problems),
            parameters=count_params(model),
            judge_parameters=judge.parameters if judge else 0,
            mesh=dict(mesh.shape),
        )
    )
    record = make_record(
        config,
        data=hash_problems(problems),
        evaluation=hash_problems(evaluation.problems) if evaluation else "",
        policy=hash_model(policy_dir),
        judge=hash_model(judge_dir) if judge_dir else "",
        prompts=hash_texts([instruction, judge.prompt.system, judge.prompt.user] if judge else [instruction]),
    )

    # -- State: restored, or begun from the starting policy.
    updates = optimizer_steps(config)
    begun = begin_or_continue(
        config, workdir, console, record, policy_dir, mesh, batches, updates=updates, fidelity=config.fidelity
    )

    carried = None
    if config.rollout.max_rounds > 1:
        by_id = {problem.problem_id: problem for problem in problems}
        carried = _carried_groups(workdir, begun, lambda name: to_prompt(by_id[name]), console)

    # -- Programs.
    engine = make_engine(model, mesh, jnp.dtype(config.model.dtype), config.rollout)
    console.print(f"  {'rollouts':<14} {engine.layout()}")
    banned_ids = processor.banned_ids
    return Run(
        config=config,
        workdir=workdir,
        console=console,
        setup_seconds=time.monotonic() - started,
        processor=processor,
        batches=batches,
        settings=settings,
        mesh=mesh,
        engine=engine,
        judge=judge,
        judge_failures=FailureWindow(config.judge.failure_window, config.judge.max_failure_rate),
        state=begun.state,
        step=begun.step,
        checkpoints=begun.checkpoints,
        replays=rollouts_to_replay(config.rollout.replay, range(begun.step + 1, config.steps + 1)),
        evaluation=evaluation,
        train_step=TrainStep(model, config, mesh, begun.optimizer, banned_ids=banned_ids),
        carried=carried,
        add_log_probs=_make_log_probs(config, policy_dir, model, mesh, banned_ids),
    )


def _model_directories(config: ConfigDict, workdir: Path) -> tuple[Path, Path | None]:
    """Where policy and judge are loaded from, None for no judge here; random ones are made under `workdir`/random."""
    random = workdir / "random"
    begun = has_checkpoint(workdir / "checkpoints")
    policy = prepare_model(
        "model.path",
        config.model.path,
        config.model.tokenizer,
        "qwen2_5_vl",
        random / "policy",
        config.seed,
        begun=begun,
    )
    if not has_own_model(config):
        return policy, None
    tokenizer = config.judge.tokenizer or config.model.tokenizer
    family = judge_family(config)
    judge = prepare_model(
        "judge.path", config.judge.path, tokenizer, family, random / "judge", config.seed + 1, begun=begun
    )
    return policy, judge


def _carried_groups(
    workdir: Path, begun: Beginning, to_prompt: Callable[[str], Prompt], console: RunConsole
) -> Groups | None:
    """What the last step left to the next, as far as the config would still have it so."""
    changed = sorted(name for name in begun.changed if name.startswith(MAKES_GROUPS))
    if not changed:
        return read_carried(workdir, begun.step, to_prompt)
    console.print(f"  what step {begun.step} carried over, if anything, is left out: {', '.join(changed)} changed")
    return None


def _make_log_probs(
    config: ConfigDict, policy_dir: Path, model: ModelConfig, mesh: Mesh, banned_ids: tuple[int, ...]
) -> Callable[[Params, TrainBatch], TrainBatch]:
    """`Run.add_log_probs`: the reference is the policy that the run starts from, in the dtype to compute in.

    Where adapters are trained it is the policy without them, and not held apart.
    """
    old, kl, reference = config.grpo.updates_per_batch > 1, has_kl(config.grpo), None
    if kl and not config.lora.modules:
        reference = load_params(policy_dir, model, mesh, jnp.dtype(config.model.dtype))
    log_probs = LogProbs(model, config, mesh, banned_ids=banned_ids)

    def add(params: Params, batch: TrainBatch) -> TrainBatch:
        tokens = (batch.prompts, batch.responses, batch.mask)
        return dataclasses.replace(
            batch,
            old_logps=log_probs(params, *tokens) if old else None,
            reference_logps=log_probs(reference or base_params(params), *tokens) if kl else None,
        )

    return add
