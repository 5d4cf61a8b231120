"""The training loop. It reads as verbs: take prompts, roll out, judge, score, advantages, step, log, save."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from perception_r1_jax.config import arithmetic, load_instruction, validate
from perception_r1_jax.data import load_problems, make_pipeline
from perception_r1_jax.grpo.advantages import advantages_of_groups
from perception_r1_jax.grpo.step import make_log_probs_fn, make_train_step
from perception_r1_jax.inference import Engine
from perception_r1_jax.inference.rollout import roll_out, rollout_metrics
from perception_r1_jax.judge.metrics import judge_metrics
from perception_r1_jax.judge.on_mesh import Judge, load_judge
from perception_r1_jax.judge.prompts import JudgeRequest
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.models import ModelConfig, abstract_params, cast_params, load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import GroupAdvantages, Problem, PromptBatch, Rollout, Scores, TrainBatch
from perception_r1_jax.rewards.accuracy import AccuracyPool
from perception_r1_jax.rewards.score import RewardSettings, score_responses
from perception_r1_jax.sharding import make_mesh, put_batch
from perception_r1_jax.training.checkpoints import Checkpoints
from perception_r1_jax.training.metrics import MetricsWriter, fence, format_line
from perception_r1_jax.training.models import RANDOM, keep_side_files, prepare_model
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.progress import progress_bar
from perception_r1_jax.training.run_record import hash_files, hash_problems, hash_texts, peak_rss_bytes, write_result, write_run
from perception_r1_jax.training.samples import append_samples
from perception_r1_jax.training.timing import Clock
from perception_r1_jax.training.state import abstract_state, init_state
from perception_r1_jax.weights import load_params, locate_model

logger = logging.getLogger(__name__)

LINE = (
    "reward/total",
    "reward/format",
    "reward/accuracy",
    "reward/visual",
    "reward/repetition",
    "judge/failure_rate",
    "rollout/length_mean",
    "train/loss",
    "train/grad_norm",
    "train/entropy",
    "time/step",
)
"""The metrics of the one line that a step prints; metrics.jsonl has all."""


def train(config: ConfigDict, workdir: Path) -> dict:
    """Runs `config.steps` steps of GRPO, from the latest checkpoint in `workdir` where there is one.

    Returns:
        The content of `result.json`.

    Raises:
        ValueError, FileNotFoundError: a config, data or model that cannot be used; it says what to do.
    """
    # -- Check all that can be checked before the first device is touched.
    validate(config)
    settings = RewardSettings.from_config(config)
    started = time.monotonic()
    workdir = workdir.resolve()
    problems, report = load_problems(config.data.path, config.data.split)
    console = Console()
    console.print(report.summary(), highlight=False, soft_wrap=True)

    # -- Models: directories, shapes, processors.
    policy_dir = prepare_model(
        config.model.path, config.model.tokenizer, "qwen2_5_vl", workdir / "random" / "policy", config.seed
    )
    judge_dir = None
    if config.judge.path:
        tokenizer = config.judge.tokenizer or config.model.tokenizer
        judge_dir = prepare_model(config.judge.path, tokenizer, "qwen2", workdir / "random" / "judge", config.seed + 1)
    keep_side_files(policy_dir, config.model.tokenizer, workdir / "model")
    model = load_config(locate_model(policy_dir).model_dir)
    processor = Processor.from_directory(
        workdir / "model",
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
        fidelity=config.fidelity,
        max_prompt_tokens=config.rollout.prompt_buckets[-1],
        max_windows=config.rollout.window_buckets[-1],
    )

    # -- Data: problems in shuffled order, prepared ahead.
    instruction = load_instruction(config)
    batches = make_pipeline(
        problems,
        lambda problem: processor.prompt(problem, suffix=instruction),
        batch_size=config.rollout.prompts_per_step,
        seed=config.seed,
        shuffle=config.data.shuffle,
        prefetch=config.data.prefetch,
    )

    # -- Mesh, judge, policy.
    mesh = make_mesh(**config.mesh)
    judge = _load_judge(config, judge_dir, mesh) if judge_dir else None
    judge_parameters = _count(load_config(locate_model(judge_dir).model_dir)) if judge_dir else 0
    block = arithmetic(
        config,
        problems=len(problems),
        parameters=_count(model),
        judge_parameters=judge_parameters,
        mesh=dict(mesh.shape),
    )
    console.print(block, highlight=False, soft_wrap=True)
    write_run(
        workdir,
        config,
        data=hash_problems(problems),
        policy=hash_files(policy_dir),
        judge=hash_files(judge_dir) if judge_dir else "",
        prompts=hash_texts([instruction, judge.prompt.system, judge.prompt.user] if judge else [instruction]),
    )
    optimizer = make_optimizer(config.optimizer, config.steps, fidelity=config.fidelity)
    abstract = abstract_state(model, optimizer, mesh, freeze_vision=config.model.freeze_vision)
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep_last=config.checkpoint.keep_last, keep_best=config.checkpoint.keep_best
    )
    first = checkpoints.latest_step() or 0
    if first >= config.steps:
        console.print(f"{workdir} has its {config.steps} steps already; give config.steps more, or another workdir.")
        return json.loads((workdir / "result.json").read_text())
    if first:
        state = checkpoints.restore(first, abstract, batches)
        console.print(f"continues after step {first}, from {workdir}", highlight=False, soft_wrap=True)
    else:
        params = load_params(policy_dir, model, mesh, jnp.float32)
        state = init_state(params, optimizer, abstract, freeze_vision=config.model.freeze_vision)
        del params  # the state has taken them over

    # -- Programs.
    dtype = jnp.dtype(config.model.dtype)
    to_rollout = jax.jit(lambda params: cast_params(params, dtype))
    engine = Engine(model, None, mesh)
    train_step = make_train_step(model, config, mesh, optimizer, banned_ids=processor.banned_ids)
    reference = load_params(policy_dir, model, mesh, dtype) if config.grpo.kl_coefficient > 0 else None
    reference_log_probs = make_log_probs_fn(model, config, mesh, banned_ids=processor.banned_ids)
    key = jax.random.key(config.seed)

    # -- The loop.
    samples = workdir / "samples.jsonl"
    fence(samples, first + 1)
    rewards: dict[str, float] = {}
    with (
        AccuracyPool(config.reward.workers, config.reward.deadline_seconds, config.fidelity) as pool,
        MetricsWriter(workdir, first_step=first + 1) as writer,
        checkpoints,
        progress_bar(first, config.steps, console) as advance,
    ):
        for step in range(first + 1, config.steps + 1):
            clock = Clock()
            with clock("data"):
                prompts = next(batches)
                asked = [prompt.problem for prompt in prompts]
            with clock("rollout"):
                engine.params = to_rollout(state.params)
                prompt_batch, rollout = roll_out(
                    engine, processor, prompts, config.rollout, jax.random.fold_in(key, step)
                )
                engine.params = None  # makes room for the update
            with clock("judge"):
                judgements = judge_rollout(judge, asked, rollout) if judge else None
            with clock("score"):
                scores = score_responses(asked, rollout.texts, judgements, pool, settings)
                advantages = advantages_of_groups(scores.total, scores.valid, fidelity=config.fidelity)
            with clock("train"):
                batch = put_batch(mesh, make_train_batch(prompt_batch, rollout, scores, advantages))
                if reference is not None:
                    batch = add_reference(batch, reference_log_probs, reference)
                state, updated = train_step(state, batch)
                updated = {f"train/{name}": float(value) for name, value in jax.device_get(updated).items()}
            rewards = reward_metrics(scores, advantages)
            metrics = {
                **rewards,
                **rollout_metrics(rollout),
                **updated,
                **clock.metrics(),
                "data/dropped": len(batches.dropped),
                "memory/peak_rss_gib": peak_rss_bytes() / 2**30,
                "compilations/policy": engine.compilations,
                "compilations/judge": judge.compilations if judge else 0,
                "compilations/train": train_step._cache_size(),
            }
            writer.write(step, metrics)
            append_samples(samples, step, asked, rollout, scores, advantages)
            console.print(format_line(step, config.steps, metrics, LINE), highlight=False, soft_wrap=True)
            advance(rewards)
            if step % config.checkpoint.every == 0 or step == config.steps:
                checkpoints.save(step, state, batches, metric=rewards["reward/total"])
    for message in batches.dropped.values():
        logger.warning("dropped: %s", message)
    return write_result(workdir, rewards=rewards, seconds=time.monotonic() - started)


def judge_rollout(judge: Judge, problems: Sequence[Problem], rollout: Rollout) -> list[list[Judgement]]:
    """Judgements [N][G]."""
    group = len(rollout.texts[0])
    requests = [
        JudgeRequest(problem.annotations, text) for problem, row in zip(problems, rollout.texts) for text in row
    ]
    flat = judge.judge(requests)
    return [flat[start : start + group] for start in range(0, len(flat), group)]


def make_train_batch(
    prompts: PromptBatch, rollout: Rollout, scores: Scores, advantages: GroupAdvantages
) -> TrainBatch:
    """What the step consumes; a response that is not valid has an empty mask."""
    return TrainBatch(
        prompts=prompts,
        responses=rollout.tokens,
        mask=rollout.mask & scores.valid[:, :, None],
        advantages=advantages.advantages,
        rollout_logps=rollout.logps,
    )


def add_reference(batch: TrainBatch, log_probs, reference) -> TrainBatch:
    """The batch with the reference policy's log-probs."""
    return dataclasses.replace(
        batch, reference_logps=log_probs(reference, batch.prompts, batch.responses, batch.mask)
    )


def reward_metrics(scores: Scores, advantages: GroupAdvantages) -> dict[str, float]:
    """Mean of the total over valid responses, of each term over those that have it, and what went missing."""
    means = {f"reward/{name}": _mean(values[~np.isnan(values)]) for name, values in scores.terms.items()}
    judged = judge_metrics(status for row in scores.judge_status for status in row)
    return {
        "reward/total": _mean(scores.total[scores.valid]),
        **means,
        "reward/dropped": float((~scores.valid).sum()),
        "reward/groups_without_signal": float(advantages.no_signal.mean()),
        **{name: float(count) for name, count in scores.counts.items() if not name.startswith("judge/")},
        **judged,
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _load_judge(config: ConfigDict, directory: Path, mesh: jax.sharding.Mesh) -> Judge:
    judge = config.judge
    return load_judge(
        directory,
        mesh,
        tokenizer=judge.tokenizer if judge.path != RANDOM else "",
        prompt=judge.prompt,
        mode=judge.mode,
        max_prompt_tokens=judge.max_prompt_tokens,
        max_new_tokens=judge.max_new_tokens,
        batch_size=judge.batch_size,
        dtype=jnp.dtype(config.model.dtype),
        fidelity=config.fidelity,
    )


def _count(model: ModelConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))
