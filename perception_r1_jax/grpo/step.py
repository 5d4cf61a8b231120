"""One optimizer step over a batch of rollouts, as a single function that compiles once per bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from perception_r1_jax.config import optimizer_steps
from perception_r1_jax.grpo.aggregation import masked_sum, token_weights
from perception_r1_jax.grpo.flat_groups import live_chunks, scan_live
from perception_r1_jax.grpo.kl import adapted_scale, has_kl, kl_coefficient
from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.grpo.losses import Metrics
from perception_r1_jax.grpo.micro_batches import MicroBatches
from perception_r1_jax.grpo.objective import token_objective
from perception_r1_jax.models import ModelConfig, Params, cast_params
from perception_r1_jax.records import PromptBatch, TrainBatch
from perception_r1_jax.sharding import constrain, constrain_batch, replicated
from perception_r1_jax.training.state import TrainState, abstract_state, state_shardings, trained_params
from perception_r1_jax.training.update import apply_gradients

TrainStep = Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]


def make_train_step(
    model: ModelConfig,
    config: ConfigDict,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    *,
    banned_ids: Sequence[int] = (),
) -> TrainStep:
    """The compiled update: (state, batch) -> (state, metrics). The state is donated; place the batch with `put_batch`.

    Each micro-batch adds its share of the batch's loss (`losses.token_weights`), so the split changes nothing
    but rounding. A gradient whose norm is not finite leaves parameters and optimizer as they were, bit for bit,
    and is counted in the state. With `grpo.drop_flat_groups` a micro-batch without any advantage is left out of
    gradient and metrics (`flat_groups`).

    Args:
        model: the policy's shapes.
        config: the run's; `steps`, `grpo`, `rollout` and `model` are read.
        mesh: where the state lies.
        optimizer: the one that made the state.
        banned_ids: tokens that sampling never takes.

    Returns:
        The function. Its metrics are float32 scalars: `loss`, `grad_norm` (before clipping), `update_norm`, `tokens`,
        `skipped` (so far in the run), `kl_coefficient` of a run with a KL term, and means over tokens, NaN where there
        are none: `entropy`, those of `losses.policy_loss`, `kl` where the batch has reference log-probs, those of
        `ratios.rollout_mismatch` where it has the sampler's, and those of `ratios.truncated_importance` where the
        config asks for it.
        A batch that the micro-batches do not divide is a ValueError on the first call, with the nearest sizes that do.
    """
    micro_batches = _micro_batches(config)
    freeze_vision = config.model.freeze_vision
    shardings = state_shardings(abstract_state(model, optimizer, mesh, freeze_vision=freeze_vision))
    grad_shardings = trained_params(shardings.params, freeze_vision=freeze_vision)
    loss_and_grads = jax.value_and_grad(_make_loss(model, config, banned_ids), has_aux=True)

    def step(state, batch):
        trained = trained_params(state.params, freeze_vision=freeze_vision)
        kl_weight = kl_coefficient(config.grpo, optimizer_steps(config), state.step, state.kl_scale)

        def add_micro_batch(grads, prompts, responses):
            out, more = loss_and_grads(trained, state.params, prompts, *responses, kl_weight)
            return jax.lax.with_sharding_constraint(jax.tree.map(jnp.add, grads, more), grad_shardings), out

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            xs = (dataclasses.replace(batch, prompts=None), _batch_weights(config, batch.mask))
            zeros = jax.tree.map(jnp.zeros_like, trained)
            live = live_chunks(micro_batches, batch) if config.grpo.drop_flat_groups else None
            grads, parts = _scan(micro_batches, add_micro_batch, zeros, batch.prompts, xs, live)
            loss, sums = jax.tree.map(jnp.sum, parts)
            state, metrics = apply_gradients(optimizer, state, trained, grads)
        metrics = {"loss": loss, **_token_means(sums), **metrics}
        if has_kl(config.grpo):
            metrics["kl_coefficient"] = kl_weight
        if config.grpo.kl_schedule == "adaptive":
            scale = adapted_scale(state.kl_scale, metrics["kl"], config.grpo.kl_target)
            state = dataclasses.replace(state, kl_scale=scale)
        return state, metrics

    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, None), out_shardings=(shardings, replicated(mesh)))


def make_log_probs_fn(
    model: ModelConfig, config: ConfigDict, mesh: Mesh, *, banned_ids: Sequence[int] = ()
) -> Callable[[Params, PromptBatch, Int[Array, "N G C"], Bool[Array, "N G C"]], Float[Array, "N G C"]]:
    """The compiled (params, prompts, responses, mask) -> log-probs, for old and reference policies.

    Computed as the train step does it, in the same micro-batches; 0 outside the mask.
    """
    micro_batches = _micro_batches(config)
    dtype, options = jnp.dtype(config.model.dtype), _log_prob_options(config, banned_ids)

    def log_probs(params, prompts, responses, mask):
        params = cast_params(params, dtype)

        def one(_, prompts, xs):
            logps, _ = response_log_probs(model, params, prompts, *xs, **options)
            return None, jnp.where(xs[1], logps, 0.0)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            _, parts = _scan(micro_batches, one, None, prompts, (responses, mask))
            return constrain(micro_batches.join_responses(parts), ("batch", None, None))

    return jax.jit(log_probs)


def _micro_batches(config):
    return MicroBatches(config.grpo.micro_batch_prompts, config.grpo.micro_batch_samples)


def _log_prob_options(config, banned_ids):
    return {
        "temperature": config.rollout.temperature,
        "banned_ids": tuple(banned_ids),
        "chunk": config.grpo.log_prob_chunk,
        "remat": config.model.remat,
    }


def _batch_weights(config, mask):
    """`token_weights` of the whole batch, [N, G, C]."""
    aggregation = config.grpo.aggregation
    weights = token_weights(_rows(mask), aggregation, max_tokens=config.rollout.response_buckets[-1])
    return weights.reshape(mask.shape)


def _make_loss(model, config, banned_ids):
    """(trained and all float32 parameters, prompts, responses, token weights, KL weight) -> (loss, sums by metric)."""
    dtype, options = jnp.dtype(config.model.dtype), _log_prob_options(config, banned_ids)
    options["entropy_gradient"] = config.grpo.entropy_coefficient > 0

    def loss(trained, params, prompts, batch, weights, kl_weight):
        params = cast_params({**params, **trained}, dtype)
        logps, entropy = response_log_probs(model, params, prompts, batch.responses, batch.mask, **options)
        batch, weights, logps, entropy = jax.tree.map(_rows, (batch, weights, logps, entropy))
        losses, stats = token_objective(config.grpo, batch, logps, entropy, kl_weight)
        return jnp.sum(weights * losses), {name: masked_sum(values, batch.mask) for name, values in stats.items()}

    return loss


def _rows(x):
    """[N, G, ...] -> [N G, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _scan(micro_batches, body, carry, prompts, responses, live=None):
    """Runs body(carry, prompts, responses) -> (carry, y) over all micro-batches; y comes back stacked.

    With `live` (`flat_groups.live_chunks`) the others are left out, and y is zero there. The scan over a prompt chunk's
    samples is inside the one over prompt chunks: prompts are never repeated.
    """

    def over_prompts(carry, xs):
        prompts, responses = xs
        prompts = constrain_batch(prompts)
        return jax.lax.scan(lambda carry, x: body(carry, prompts, x), carry, responses)

    xs = (micro_batches.split_prompts(prompts), micro_batches.split_responses(responses))
    return jax.lax.scan(over_prompts, carry, xs) if live is None else scan_live(over_prompts, carry, xs, live)


def _token_means(sums):
    tokens = sums.pop("tokens")
    return {"tokens": tokens, **{name: total / tokens for name, total in sums.items()}}  # NaN where there are none
