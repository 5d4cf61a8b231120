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

from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.grpo.losses import MAX_LOG_RATIO, Metrics, masked_sum, token_kl, token_losses, token_weights
from perception_r1_jax.grpo.micro_batches import MicroBatches
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
    and is counted in the state.

    Args:
        model: the policy's shapes.
        config: the run's; `grpo`, `rollout` and `model` are read.
        mesh: where the state lies.
        optimizer: the one that made the state.
        banned_ids: tokens that sampling never takes.

    Returns:
        The function. Its metrics are float32 scalars: `loss`, `grad_norm` (before clipping), `update_norm`, `tokens`,
        `skipped` (so far in the run), and means over tokens: `entropy`, those of `losses.policy_loss`, `kl` where the
        batch has reference log-probs, `rollout_train_logp_diff` = mean |logp - rollout logp| and
        `token_mult_prob_error` = mean exp |logp - rollout logp| where it has the rollout's.
        A batch that the micro-batches do not divide is a ValueError on the first call, with the nearest sizes that do.
    """
    micro_batches = _micro_batches(config)
    freeze_vision = config.model.freeze_vision
    shardings = state_shardings(abstract_state(model, optimizer, mesh, freeze_vision=freeze_vision))
    grad_shardings = trained_params(shardings.params, freeze_vision=freeze_vision)
    loss_and_grads = jax.value_and_grad(_make_loss(model, config, banned_ids), has_aux=True)

    def step(state, batch):
        trained = trained_params(state.params, freeze_vision=freeze_vision)

        def add_micro_batch(grads, prompts, responses):
            out, more = loss_and_grads(trained, state.params, prompts, *responses)
            return jax.lax.with_sharding_constraint(jax.tree.map(jnp.add, grads, more), grad_shardings), out

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            xs = (dataclasses.replace(batch, prompts=None), _batch_weights(config, batch.mask))
            zeros = jax.tree.map(jnp.zeros_like, trained)
            grads, parts = _scan(micro_batches, add_micro_batch, zeros, batch.prompts, xs)
            loss, sums = jax.tree.map(jnp.sum, parts)
            state, metrics = apply_gradients(optimizer, state, trained, grads)
        return state, {"loss": loss, **_token_means(sums), **metrics}

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
    """(trained and all float32 parameters, prompts, responses, token weights) -> (loss, sums over tokens)."""
    grpo, dtype, options = config.grpo, jnp.dtype(config.model.dtype), _log_prob_options(config, banned_ids)
    clip = {"clip_low": grpo.clip_low, "clip_high": grpo.clip_high, "dual_clip": grpo.dual_clip}

    def loss(trained, params, prompts, batch, weights):
        params = cast_params({**params, **trained}, dtype)
        logps, entropy = response_log_probs(model, params, prompts, batch.responses, batch.mask, **options)
        batch, weights, logps = jax.tree.map(_rows, (batch, weights, logps))
        old_logps = logps if batch.old_logps is None else batch.old_logps
        losses, stats = token_losses(logps, old_logps, batch.advantages, batch.mask, **clip)
        if batch.reference_logps is not None:
            stats["kl"] = token_kl(logps, batch.reference_logps, batch.mask, grpo.kl_estimator)
            losses += grpo.kl_coefficient * stats["kl"]
        stats |= {"entropy": _rows(entropy), "tokens": jnp.ones_like(logps), **_rollout_difference(logps, batch)}
        return jnp.sum(weights * losses), {name: masked_sum(values, batch.mask) for name, values in stats.items()}

    return loss


def _rollout_difference(logps, batch):
    """How far the sampler's log-probs are from the training pass's, token by token."""
    if batch.rollout_logps is None:
        return {}
    difference = jnp.abs(logps - batch.rollout_logps)
    return {
        "rollout_train_logp_diff": difference,
        "token_mult_prob_error": jnp.exp(jnp.minimum(difference, MAX_LOG_RATIO)),
    }


def _rows(x):
    """[N, G, ...] -> [N G, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _scan(micro_batches, body, carry, prompts, responses):
    """Runs body(carry, prompts, responses) -> (carry, y) over all micro-batches; y comes back stacked.

    The scan over a prompt chunk's samples is inside the one over prompt chunks: prompts are never repeated.
    """

    def over_prompts(carry, xs):
        prompts, responses = xs
        prompts = constrain_batch(prompts)
        return jax.lax.scan(lambda carry, x: body(carry, prompts, x), carry, responses)

    xs = (micro_batches.split_prompts(prompts), micro_batches.split_responses(responses))
    return jax.lax.scan(over_prompts, carry, xs)


def _token_means(sums):
    tokens = sums.pop("tokens")
    return {"tokens": tokens, **{name: total / jnp.maximum(tokens, 1.0) for name, total in sums.items()}}
