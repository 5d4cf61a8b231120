"""The training loop. It reads as verbs: take prompts, roll out, judge, score, advantages, step, log, save."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from perception_r1_jax.evaluation.compare import result_fields
from perception_r1_jax.evaluation.shown import comparison_table
from perception_r1_jax.inference.rollout import bucketed_batch, roll_out, rollout_metrics
from perception_r1_jax.judge.flips import flip_verdicts
from perception_r1_jax.judge.metrics import all_failed, judge_metrics
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.records import Problem, PromptBatch, Rollout
from perception_r1_jax.rewards.accuracy import AccuracyPool
from perception_r1_jax.rewards.score import complete_scores
from perception_r1_jax.training.dynamic_sampling import fill_batch, write_carried
from perception_r1_jax.training.evaluating import before_and_after, evaluate_policy, forget_later_evaluations
from perception_r1_jax.training.groups import Groups
from perception_r1_jax.training.metrics import MetricsWriter, fence, format_line, read_lines
from perception_r1_jax.training.progress import progress_bar
from perception_r1_jax.training.replay import SavedRollout, replay, rollout_file, write_rollout
from perception_r1_jax.training.run_record import peak_bytes_of, peak_rss_bytes, write_result
from perception_r1_jax.training.samples import append_samples
from perception_r1_jax.training.setup import Run
from perception_r1_jax.training.stopping import Stopped, StopRequest
from perception_r1_jax.training.streaming import Stream
from perception_r1_jax.training.timing import Clock
from perception_r1_jax.training.train_batches import make_train_batches, take_updates
from perception_r1_jax.training.utilisation import utilisation

LINE = {
    "reward": "reward/total",
    "format": "reward/format",
    "accuracy": "reward/accuracy",
    "visual": "reward/visual",
    "repetition": "reward/repetition",
    "judge failures": "judge/failure_rate",
    "tokens": "rollout/length_mean",
    "entropy": "train/entropy",
    "grad norm": "train/grad_norm",
    "seconds": "time/step",
}
"""The metrics of the one line that a step prints; metrics.jsonl has all."""

SHOWN = {name: f"reward/{name}" for name in ("total", "accuracy", "visual", "format", "repetition")}
"""The metrics of the progress bar."""


def train(run: Run) -> dict[str, Any] | None:
    """Evaluates the policy, runs the steps of GRPO that are left, and evaluates it again.

    Returns:
        The content of `result.json`; None where a SIGINT or SIGTERM stopped the run, which is then saved.

    Raises:
        DataError: no batch can be filled, since the problems of a whole epoch were dropped.
        RewardFailed: a judgement failed and `config.judge.on_failure` is "abort".
        JudgeFails: more judgements have failed than `config.judge.max_failure_rate` allows.
        UserError: a rollout to replay that does not belong to its step (`training.replay`).
    """
    forget_later_evaluations(run)
    with StopRequest(run.console) as stop, run.checkpoints:  # the last checkpoint, too, is waited for at a signal
        finished = (run.step > 0 or evaluate_policy(run, stop)) and take_steps(run, stop) and evaluate_policy(run, stop)
    return _write_result(run) if finished else None


def take_steps(run: Run, stop: StopRequest) -> bool:
    """Runs the steps that are left; false where a stop request has ended them, the last one saved."""
    if run.step >= run.config.steps:
        run.console.print(f"{run.workdir} has its {run.step} steps already: set config.steps higher to go on.")
        return True
    config, workdir, console, reward = run.config, run.workdir, run.console, run.config.reward
    key, metrics = jax.random.key(config.seed), {}
    samples = workdir / "samples.jsonl"
    fence(samples, run.step + 1)
    with (
        AccuracyPool(reward.workers, reward.deadline_seconds, config.fidelity) as pool,
        MetricsWriter(workdir, first_step=run.step + 1) as writer,
        progress_bar(run.step, config.steps, console, SHOWN) as advance,
    ):
        for step in range(run.step + 1, config.steps + 1):
            clock, position = Clock(), run.batches.get_state()
            draw = functools.partial(draw_groups, run, step, jax.random.fold_in(key, step), pool, clock, stop)
            try:
                with serving_copy_let_go(run):
                    filled = fill_batch(draw, run.carried, config.rollout.prompts_per_step, config.rollout.max_rounds)
            except Stopped:
                run.batches.set_state(position)
                return _stop_after(run, step - 1, metrics)
            with clock("train"):
                batches, advantages = make_train_batches(run, filled.batch)
                updated = {f"train/{name}": value for name, value in take_updates(run, batches).items()}
            run.carried = filled.carried
            rewards = reward_metrics(filled.drawn)
            rollouts = rollout_metrics(filled.drawn.rollout) | filled.metrics
            times = clock.metrics()
            updated |= utilisation(run, batches, times["time/train"])
            metrics = {**rewards, **rollouts, **updated, **times, **run_metrics(run)}
            writer.write(step, metrics)
            append_samples(samples, step, filled.batch, advantages)
            shown = {short: metrics[name] for short, name in LINE.items()}
            console.print(format_line(step, config.steps, shown, list(LINE)))
            advance(rewards)
            if reasons := all_failed({name: value for name, value in rewards.items() if name.startswith("judge/")}):
                console.print(
                    f"step {step}: every judgement has failed ({reasons}); docs/judge.md says what each means."
                )
            run.step = step
            if stop.agreed():
                return _stop_after(run, step, metrics)
            if step % config.checkpoint.every == 0 or step == config.steps:
                _save(run, step, rewards)
    return True


def _stop_after(run: Run, step: int, metrics: Mapping[str, float]) -> bool:
    """Saves a run that is to stop, with the metrics of its last step; false, as `take_steps` returns it."""
    if step == 0:
        run.console.print("stopped before the first step was done; the same command begins again.")
        return False
    _save(run, step, metrics)
    run.checkpoints.wait()
    run.console.print(f"stopped after step {step}, which is saved; the same command goes on from there.")
    return False


def _save(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    write_carried(run.workdir, step, run.carried, run.checkpoints.steps)
    run.checkpoints.save(step, run.state, run.batches, metric=metrics.get("reward/total", math.nan))


def _write_result(run: Run) -> dict[str, Any]:
    """From the metrics of all steps, those before a stop included, and the evaluations."""
    before, after = before_and_after(run)
    if before and after:
        run.console.print(comparison_table(before, after))
    lines = read_lines(run.workdir / "metrics.jsonl")
    rewards = {name: value for name, value in lines[-1].items() if name.startswith("reward/")}
    seconds = run.setup_seconds + sum(line["time/step"] for line in lines)
    seconds += sum(evaluated.summary.seconds for evaluated in (before, after) if evaluated)
    peak = peak_bytes_of(lines)
    return write_result(run.workdir, result_fields(before, after), rewards=rewards, seconds=seconds, peak_bytes=peak)


@contextlib.contextmanager
def serving_copy_let_go(run: Run) -> Iterator[None]:
    """What draws within it may leave its copy of the weights loaded, for the next draw; at the end the copy goes."""
    try:
        yield
    finally:
        run.engine.unload()  # makes room for the update, or for saving


def draw_groups(
    run: Run,
    step: int,
    key: Key[Array, ""],
    pool: AccuracyPool,
    clock: Clock,
    stop: StopRequest,
    draw: int,
) -> Groups:
    """The next prompts of the data with scored responses; `draw` counts the step's rounds, from 0.

    Raises:
        Stopped: a stop request has come before all responses were drawn, judged and graded.
    """
    with clock("data"):
        prompts = next(run.batches)
        problems = [prompt.problem for prompt in prompts]
    streaming = run.config.judge.streaming
    with Stream(
        problems,
        run.judge,
        streaming=streaming,
        pool=pool,
        settings=run.settings,
        clock=clock,
        check=stop.check_waiting,
    ) as stream:
        with clock("rollout"):
            prompt_batch = bucketed_batch(prompts, run.processor, run.config.rollout)
            key = jax.random.fold_in(key, draw) if draw else key  # a round may meet the next epoch, and a problem again
            rollout = take_rollout(run, step, problems, prompt_batch, key, stop, stream)
        with clock("judge"):
            judgements = take_judgements(run, step, problems, stream) if run.judge else None
        with clock("score"):
            cheap, lengths = stream.cheap(), rollout.mask.sum(-1)
            scores = complete_scores(problems, rollout.texts, judgements, cheap, run.settings, lengths=lengths)
    return Groups(prompts, rollout, scores, prompt_batch)


def take_rollout(
    run: Run,
    step: int,
    problems: Sequence[Problem],
    prompts: PromptBatch,
    key: Key[Array, ""],
    stop: StopRequest,
    stream: Stream,
) -> Rollout:
    """The step's responses: drawn from the policy, or replayed from a file where the run has one for the step.

    They go to the stream, group by group, as they finish.

    Raises:
        Stopped: a stop request has come while they were drawn.
    """
    config, names = run.config.rollout, [problem.problem_id for problem in problems]
    if step in run.replays:
        rollout = replay(run.replays[step], step, names, config, run.engine.config.vocab_size)
        run.console.print(f"step {step} replays the rollout in {run.replays[step]}")
        stream.add(range(len(names)), rollout.texts)
    else:
        if not run.engine.loaded:  # a further draw of the step finds the copy that its first has made
            run.engine.load(run.state.params)
        rollout = roll_out(run.engine, run.processor, prompts, config, key, stop.check, stream.add)
        if config.max_rounds == 1:
            run.engine.unload()  # makes room for the judge, where that does not stream
    if config.save:
        write_rollout(rollout_file(config.save, step), SavedRollout(step, run.config.seed, names, rollout))
    return rollout


def take_judgements(run: Run, step: int, problems: Sequence[Problem], stream: Stream) -> list[list[Judgement]]:
    """Judgements [N][G]; `config.judge.flip_probability` of their verdicts turned round. Raises `JudgeFails`."""
    judgements = stream.judgements()
    run.judge_failures.add(judgement for row in judgements for judgement in row)
    names = [problem.problem_id for problem in problems]
    return flip_verdicts(judgements, names, run.config.judge.flip_probability, seed=run.config.seed, step=step)


def reward_metrics(groups: Groups) -> dict[str, float]:
    """Mean of the total over valid responses, of each term over those that have it, and what went missing."""
    scores = groups.scores
    means = {f"reward/{name}": _mean(values[~np.isnan(values)]) for name, values in scores.terms.items()}
    counts = {name: count for name, count in scores.counts.items() if not name.startswith("judge/")}
    return {
        "reward/total": _mean(scores.total[scores.valid]),
        **means,
        "reward/groups_without_signal": float(groups.without_signal.mean()),
        **{f"reward/{name}": float(count) for name, count in counts.items()},
        **judge_metrics(status for row in scores.judge_status for status in row),
    }


def run_metrics(run: Run) -> dict[str, float]:
    """Problems dropped so far, memory of this process, how many programs were compiled, and how the judge was asked."""
    return {
        "data/dropped": len(run.batches.dropped),
        "memory/peak_rss_gib": peak_rss_bytes() / 2**30,
        "compilations/policy": run.engine.compilations,
        "compilations/judge": run.judge.compilations if run.judge else 0,
        "compilations/train": run.train_step.compilations,
        **(run.judge.take_metrics() if run.judge else {}),
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
