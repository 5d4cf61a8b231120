"""From a config to all programs of its run on some devices."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perception_r1_jax.config import optimizer_steps
from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.kl import has_kl
from perception_r1_jax.grpo.step import LogProbs, TrainStep
from perception_r1_jax.grpo.work import gradient_passes
from perception_r1_jax.inference import Engine
from perception_r1_jax.inference.rollout import make_engine
from perception_r1_jax.judge.pictures import check_sees
from perception_r1_jax.models import (
    ModelConfig,
    Params,
    Prefix,
    abstract_params,
    base_params,
    check_backend,
    flops,
    logical_axes,
)
from perception_r1_jax.plan import shapes
from perception_r1_jax.plan.choosing import ChoiceCalls, choosing_programs
from perception_r1_jax.plan.models import model_shapes
from perception_r1_jax.plan.programs import JUDGE, OPTIMIZER, PARAMETERS, Held, Program, join
from perception_r1_jax.plan.serving import Calls, prefix_shapes, served_params, serving_held, serving_programs
from perception_r1_jax.plan.topologies import Target
from perception_r1_jax.processing import bucket_size
from perception_r1_jax.sharding import abstract_batch, make_mesh, replicated, tree_shardings
from perception_r1_jax.training.judge import has_own_model, judge_family
from perception_r1_jax.training.optimizer import make_optimizer
from perception_r1_jax.training.state import TrainState, abstract_state, state_options, trained_params


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run as shapes.

    Attributes:
        config: resolved.
        mesh: of training.
        policy: the policy's shapes.
        judge: the judge's; None without one.
        state: parameters and optimizer.
        reference: the reference policy's parameters; None without a KL term, or where adapters are trained beside them.
        rollouts: the engine of rollouts, and of evaluation.
        judging: the judge's engine; None without one.
        problems: what keeps the run from starting as the config says, though its programs may be compiled.
    """

    config: ConfigDict
    mesh: Mesh
    policy: ModelConfig
    judge: ModelConfig | None
    state: TrainState
    reference: Params | None
    rollouts: Engine
    judging: Engine | None
    problems: tuple[str, ...]


def plan_run(config: ConfigDict, target: Target) -> PlannedRun:
    """The run of a resolved config on these devices.

    Raises:
        UserError: a model that is not known, a mesh or an engine that the devices cannot hold, or attention that they
            do not have.
    """
    policy = model_shapes("model.path", config.model.path, config.model.tokenizer, "qwen2_5_vl")
    judge = None
    if has_own_model(config):
        tokenizer = config.judge.tokenizer or config.model.tokenizer
        judge = model_shapes("judge.path", config.judge.path, tokenizer, judge_family(config))
        if config.judge.sees:
            check_sees(judge, config.judge.path)
    return plan_models(config, target, policy, judge)


def plan_models(config: ConfigDict, target: Target, policy: ModelConfig, judge: ModelConfig | None) -> PlannedRun:
    """The run of these models; arguments and errors as of `plan_run`."""
    mesh = make_mesh(**config.mesh, devices=target.devices)
    check_backend(config.model.attention, mesh.devices.flat[0].platform)
    dtype, problems = jnp.dtype(config.model.dtype), []

    def rollouts(**fields):
        return make_engine(policy, mesh, dtype, ConfigDict({**config.rollout, **fields}), target.memory)

    def judging(**fields):
        names = ("weights_memory", "cache_memory", "weights_int8")
        fields = {name: config.judge[name] for name in names} | fields
        return Engine(judge, None, mesh, dtype=dtype, memory=target.memory, **fields)

    optimizer = make_optimizer(config.optimizer, optimizer_steps(config), fidelity=config.fidelity)
    return PlannedRun(
        config=config,
        mesh=mesh,
        policy=policy,
        judge=judge,
        state=abstract_state(
            policy,
            optimizer,
            mesh,
            **state_options(config),
        ),
        reference=stored_params(policy, mesh, dtype) if has_kl(config.grpo) and not config.lora.modules else None,
        rollouts=_at_all_costs(rollouts, "the policy", problems),
        judging=_at_all_costs(judging, "the judge", problems) if judge else None,
        problems=tuple(problems),
    )


def _at_all_costs(make: Callable[..., Engine], who: str, problems: list[str]) -> Engine:
    """The engine; where the weights are above their share of the memory, one with the least share that holds them."""
    try:
        return make()
    except UserError as error:
        problems.append(f"{who}: {error}")
    share = 0.5
    while True:
        with contextlib.suppress(UserError):
            return make(weights_memory=share)
        share *= 1.2


def stored_params(model: ModelConfig, mesh: Mesh, dtype) -> Params:
    """Parameters as `weights.load_params` places them."""
    shapes = abstract_params(model)
    shardings = tree_shardings(mesh, logical_axes(model), shapes)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shapes, shardings)


def run_programs(run: PlannedRun) -> tuple[list[Program], list[str]]:
    """All programs of a run, in the order in which they first run, and what keeps some from being made."""
    programs, problems = [], []
    calls = judge_calls(run) if run.judging else []
    for each in [*calls, *drawing_calls(run)]:
        make = choosing_programs if isinstance(each, ChoiceCalls) else serving_programs
        try:
            programs += make(each)
        except UserError as error:
            problems.append(f"{each.name}: {error}")
    if has_kl(run.config.grpo):
        programs.append(_log_probs(run, "train/log_probs", run.reference or base_params(run.state.params)))
    if run.config.grpo.updates_per_batch > 1:
        programs.append(_log_probs(run, "train/old_log_probs", run.state.params))
    return [*programs, *_train_step(run)], problems


def _kept(run: PlannedRun) -> Held:
    """What lies on the devices throughout; the judge, where it comes to them only to judge, does not."""
    return {
        PARAMETERS: (run.state.params, run.reference),
        OPTIMIZER: run.state.opt_state,
        JUDGE: kept_of_judge(run) if run.judge else None,
    }


def kept_of_judge(run: PlannedRun) -> tuple[Params | None, Prefix | None]:
    """The judge's weights and prefix as far as they lie on the devices throughout."""
    return None if run.config.judge.host_memory else served_params(run.judging), _judge_prefix(run)


def _judge_prefix(run: PlannedRun) -> Prefix | None:
    return prefix_shapes(run.judging, shapes.judge_prefix_tokens(run.config))


def held_while_drawing(run: PlannedRun) -> Held:
    """What rollouts hold between their programs; nothing where they have no room, of which their own programs tell."""
    with contextlib.suppress(UserError):
        return serving_held(_rollout_calls(run))
    return {}


def held_while_judging(run: PlannedRun) -> Held:
    """What of this stays there while the judge judges: all of it where that streams, or the weights for a next draw."""
    if run.config.judge.streaming:
        return held_while_drawing(run)
    return {PARAMETERS: served_params(run.rollouts)} if run.config.rollout.max_rounds > 1 else {}


def drawing_calls(run: PlannedRun) -> list[Calls]:
    """How the policy is asked, at the config's limits: by the rollouts and, where there is one, by the evaluation."""
    evaluation, calls = run.config.evaluation, [_rollout_calls(run)]
    if evaluation.split:
        calls.append(_evaluation_calls(run, "evaluation", evaluation.max_new_tokens))
    if evaluation.split and evaluation.checker:
        calls.append(_evaluation_calls(run, "probe", evaluation.probe_max_new_tokens))
    return calls


def _rollout_calls(run: PlannedRun) -> Calls:
    return Calls(
        name="rollout",
        engine=run.rollouts,
        stored=run.state.params,
        kind=PARAMETERS,
        prompts=shapes.run_prompts(run.config, run.policy),
        samples=run.config.rollout.samples_per_prompt,
        sampling=shapes.run_sampling(run.config, run.policy),
        beside=_kept(run),
        beside_load={**_kept(run), PARAMETERS: run.reference},
    )


def _evaluation_calls(run: PlannedRun, name: str, new_tokens: int) -> Calls:
    rollout, evaluation = run.config.rollout, run.config.evaluation
    return dataclasses.replace(
        _rollout_calls(run),
        name=name,
        stored=None,  # the rollouts' program brings them
        prompts=shapes.prompt_shapes(
            run.policy, evaluation.batch_size, rollout.prompt_buckets[-1], rollout.window_buckets[-1]
        ),
        samples=1,
        sampling=shapes.greedy(run.policy, new_tokens),
    )


def judge_calls(run: PlannedRun) -> list[Calls | ChoiceCalls]:
    """How the judge is asked, at its limits."""
    judge, prefix = run.config.judge, shapes.judge_prefix_tokens(run.config)
    windows = bucket_size(run.config.rollout.window_buckets[-1], smallest=4) if judge.sees else 0
    length, thoughts = judge.max_prompt_tokens - prefix, judge.max_thought_tokens
    beside = join({**_kept(run), JUDGE: None}, held_while_judging(run))
    written = Calls(
        name="judge",
        engine=run.judging,
        stored=None,  # read one after another
        kind=JUDGE,
        prompts=shapes.prompt_shapes(run.judge, judge.batch_size, length, windows),
        samples=1,
        sampling=shapes.greedy(run.judge, judge.max_new_tokens),
        beside=beside,
        beside_load={},
        prefix_tokens=prefix,
    )
    if judge.mode == "free":
        return [written]
    between = shapes.between_verdicts(1 if judge.sees else judge.max_new_tokens)
    behind = shapes.prompt_shapes(run.judge, judge.batch_size, length + thoughts, windows)
    chosen = ChoiceCalls("judge", run.judging, JUDGE, behind, between, shapes.CHOICE_IDS, prefix, beside)
    if not thoughts:
        return [chosen]
    sampling = shapes.greedy(run.judge, thoughts)
    return [dataclasses.replace(written, name="judge/thoughts", sampling=sampling), chosen]


def _train_step(run: PlannedRun) -> list[Program]:
    optimizer = make_optimizer(run.config.optimizer, optimizer_steps(run.config), fidelity=run.config.fidelity)
    step = TrainStep(run.policy, run.config, run.mesh, optimizer, banned_ids=shapes.banned_ids(run.policy))
    state, params, weights = run.state, run.state.params, shapes.micro_batch_weights(run.config)
    batch, weights = abstract_batch(run.mesh, (shapes.micro_batch(run.config, run.policy), weights))
    counters = (state.step, state.kl_scale)
    grads = trained_params(params, freeze_vision=run.config.model.freeze_vision)
    sums = jax.eval_shape(step.gradient, params, *counters, grads, batch, weights)[1]
    everywhere = replicated(run.mesh)
    sums = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), sums)
    passes = gradient_passes(run.config)
    gradient = Program(
        name="train/gradient",
        mesh=run.mesh,
        lower=lambda: step.gradient.lower(params, *counters, grads, batch, weights),
        held=_kept(run),
        given={PARAMETERS: params},
        waiting=(batch, weights),
        useful_flops=(passes.text * _text_flops(run) + passes.vision * _vision_flops(run))
        / shapes.micro_batches(run.config),
    )
    update = Program(
        name="train/update",
        mesh=run.mesh,
        lower=lambda: step.update.lower(state, grads, sums),
        held=_kept(run),
        given={PARAMETERS: params, OPTIMIZER: state.opt_state},
    )
    return [gradient, update]


def _log_probs(run: PlannedRun, name: str, params: Params) -> Program:
    log_probs = LogProbs(run.policy, run.config, run.mesh, banned_ids=shapes.banned_ids(run.policy)).log_probs
    batch = abstract_batch(run.mesh, shapes.micro_batch(run.config, run.policy))
    return Program(
        name=name,
        mesh=run.mesh,
        lower=lambda: log_probs.lower(params, batch.prompts, batch.responses, batch.mask),
        held=_kept(run),
        given={PARAMETERS: params},
        waiting=(batch.prompts, batch.responses, batch.mask),
        useful_flops=(_text_flops(run) + _vision_flops(run)) / shapes.micro_batches(run.config),
    )


def _text_flops(run: PlannedRun) -> float:
    """Of all prompts and responses of a step, each once."""
    rollout = run.config.rollout
    length, tokens = rollout.prompt_buckets[-1], rollout.response_buckets[-1]
    responses = rollout.prompts_per_step * rollout.samples_per_prompt
    prompts = flops.prompt_flops(run.policy, length, rollout.prompts_per_step)
    return prompts + flops.response_flops(run.policy, length, tokens, responses)


def _vision_flops(run: PlannedRun) -> float:
    rollout, vision = run.config.rollout, run.policy.vision
    return flops.vision_flops(vision, rollout.window_buckets[-1], rollout.prompts_per_step) if vision else 0.0
