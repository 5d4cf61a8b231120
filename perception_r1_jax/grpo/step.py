"""One optimizer step over a batch of rollouts: a program for micro-batches of each buckets, and one that updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from ml_collections import ConfigDict

from perception_r1_jax.config import optimizer_steps
from perception_r1_jax.grpo.aggregation import masked_sum, token_weights
from perception_r1_jax.grpo.kl import adapted_scale, has_kl, kl_coefficient
from perception_r1_jax.grpo.log_probs import response_log_probs
from perception_r1_jax.grpo.losses import Metrics
from perception_r1_jax.grpo.micro_batches import MicroBatch, cut_batch
from perception_r1_jax.grpo.objective import token_objective
from perception_r1_jax.models import ModelConfig, Params, cast_params
from perception_r1_jax.records import PromptBatch, TrainBatch
from perception_r1_jax.sharding import put_batch, replicated
from perception_r1_jax.training.state import TrainState, abstract_state, state_options, state_shardings, trained_params
from perception_r1_jax.training.update import apply_gradients


class TrainStep:
    """The compiled update: (state, batch of numpy arrays) -> (state, metrics). The state is donated.

    One program adds a micro-batch's share of the gradient, another updates the state. The first compiles once for each
    buckets that micro-batches have (`micro_batches.cut_batch`), the second once. Each micro-batch adds its share of the
    batch's loss (`aggregation.token_weights`), so the split changes nothing but rounding. A gradient whose norm is not
    finite leaves parameters, optimizer and KL scale as they were, bit for bit, and is counted in the state. A
    micro-batch without any token that counts is left out. With `grpo.drop_flat_groups` no token of a group without
    advantages counts, of which then the metrics, a KL term and an entropy bonus know nothing; those of others weigh as
    before.

    The metrics are float32 scalars: `loss`, `grad_norm` (before clipping), `update_norm`, `tokens`, `skipped` (so far
    in the run), `kl_coefficient` of a run with a KL term, and means over tokens, NaN where there are none: `entropy`,
    those of `losses.policy_loss`, `kl` where the batch has reference log-probs, those of `ratios.rollout_mismatch`
    where it has the sampler's, and those of `ratios.truncated_importance` where the config asks for it.

    Attributes:
        gradient: (params, step, KL scale, gradients so far, micro-batch, its token weights) -> (gradients, sums).
        update: (state, gradients, sums) -> (state, metrics).
    """

    def __init__(
        self,
        model: ModelConfig,
        config: ConfigDict,
        mesh: Mesh,
        optimizer: optax.GradientTransformation,
        *,
        banned_ids: Sequence[int] = (),
    ):
        """Compiles nothing yet.

        Args:
            model: the policy's shapes.
            config: the run's; `steps`, `grpo`, `rollout` and `model` are read.
            mesh: where the state lies.
            optimizer: the one that made the state.
            banned_ids: tokens that sampling never takes.
        """
        self._config, self._mesh = config, mesh
        freeze_vision = config.model.freeze_vision
        shardings = state_shardings(abstract_state(model, optimizer, mesh, **state_options(config)))
        grad_shardings = trained_params(shardings.params, freeze_vision=freeze_vision)
        loss_and_grads = jax.value_and_grad(_make_loss(model, config, banned_ids), has_aux=True)

        def zeros(params):
            return jax.tree.map(jnp.zeros_like, trained_params(params, freeze_vision=freeze_vision))

        def gradient(params, step, kl_scale, grads, batch, weights):
            trained = trained_params(params, freeze_vision=freeze_vision)
            kl_weight = kl_coefficient(config.grpo, optimizer_steps(config), step, kl_scale)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                (loss, sums), more = loss_and_grads(trained, params, batch, weights, kl_weight)
                return jax.tree.map(jnp.add, grads, more), {"loss": loss, **sums}

        def update(state, grads, sums):
            kl_weight = kl_coefficient(config.grpo, optimizer_steps(config), state.step, state.kl_scale)
            trained = trained_params(state.params, freeze_vision=freeze_vision)
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                state, metrics = apply_gradients(optimizer, state, trained, grads)
            metrics = {**_token_means(sums), **metrics}
            if has_kl(config.grpo):
                metrics["kl_coefficient"] = kl_weight
            if config.grpo.kl_schedule == "adaptive":
                scale = adapted_scale(state.kl_scale, metrics["kl"], config.grpo.kl_target)
                taken = jnp.isfinite(metrics["grad_norm"])
                state = dataclasses.replace(state, kl_scale=jnp.where(taken, scale, state.kl_scale))
            return state, metrics

        self._zeros = jax.jit(zeros, out_shardings=grad_shardings)
        self.gradient = jax.jit(gradient, donate_argnums=3, out_shardings=(grad_shardings, replicated(mesh)))
        self.update = jax.jit(update, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
        self._add = jax.jit(lambda *sums: jax.tree.map(jnp.add, *sums), out_shardings=replicated(mesh))

    def __call__(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        """One update. Raises as `micro_batches`."""
        weights, batch = _batch_weights(self._config, batch.mask), self.looked_at(batch)
        weights = weights * batch.mask
        grads, totals = self._zeros(state.params), []
        for micro_batch in self.micro_batches(batch):
            _leave_one_running(totals)
            placed = put_batch(self._mesh, (micro_batch.take(batch), micro_batch.take_responses(weights)))
            grads, sums = self.gradient(state.params, state.step, state.kl_scale, grads, *placed)
            totals.append(self._add(totals[-1], sums) if totals else sums)
        return self.update(state, grads, totals[-1])

    def micro_batches(self, batch: TrainBatch) -> list[MicroBatch]:
        """What an update looks at.

        Raises:
            UserError: the config's micro-batches do not divide the batch; with the nearest sizes that do.
        """
        return cut_batch(batch.prompts, self.looked_at(batch).mask, self._config)

    def looked_at(self, batch: TrainBatch) -> TrainBatch:
        """The batch, with `grpo.drop_flat_groups` without the tokens of groups that have no advantage."""
        if not self._config.grpo.drop_flat_groups:
            return batch
        with_signal = np.any(batch.advantages != 0, axis=1)
        return dataclasses.replace(batch, mask=batch.mask & with_signal[:, None, None])

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(program._cache_size() for program in (self._zeros, self.gradient, self.update, self._add))


class LogProbs:
    """The compiled (params, prompts, responses, mask) -> log-probs float32 [N, G, C], for old and reference policies.

    Arrays of the batch are numpy's, before and after. Computed as the train step does it, in such micro-batches; 0
    outside the mask.

    Attributes:
        log_probs: (params, prompts, responses, mask) of a micro-batch -> its log-probs.
    """

    def __init__(self, model: ModelConfig, config: ConfigDict, mesh: Mesh, *, banned_ids: Sequence[int] = ()):
        """Args as of `TrainStep`."""
        self._config, self._mesh = config, mesh
        dtype, options = jnp.dtype(config.model.dtype), _log_prob_options(config, banned_ids)

        def log_probs(params, prompts, responses, mask):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                params = cast_params(params, dtype)
                return response_log_probs(model, params, prompts, responses, mask, **options)[0]

        self.log_probs = jax.jit(log_probs, out_shardings=replicated(mesh))

    def __call__(
        self,
        params: Params,
        prompts: PromptBatch,
        responses: Int[np.ndarray, "N G C"],
        mask: Bool[np.ndarray, "N G C"],
    ) -> Float[np.ndarray, "N G C"]:
        """The log-probs of a batch. Raises as `TrainStep.micro_batches`."""
        micro_batches = cut_batch(prompts, mask, self._config)
        parts = []
        for one in micro_batches:
            _leave_one_running(parts)
            placed = put_batch(self._mesh, (one.take_prompts(prompts), *one.take_responses((responses, mask))))
            parts.append(self.log_probs(params, *placed))
        out = np.zeros(mask.shape, np.float32)
        for one, part in zip(micro_batches, parts):
            out[:, :, : one.tokens][one.responses] = part
        return np.where(mask, out, 0.0)


def _leave_one_running(results: Sequence[Any]) -> None:
    """Waits for all micro-batches but the last: beside its inputs only those of the next lie on the devices."""
    jax.block_until_ready(results[-2:-1])


def _log_prob_options(config, banned_ids):
    return {
        "temperature": config.rollout.temperature,
        "banned_ids": tuple(banned_ids),
        "chunk": config.grpo.log_prob_chunk,
        "remat": config.model.remat,
        "backend": config.model.attention,
    }


def _batch_weights(config, mask):
    """`token_weights` of the whole batch, numpy [N, G, C]."""
    aggregation = config.grpo.aggregation
    weights = token_weights(_rows(mask), aggregation, max_tokens=config.rollout.response_buckets[-1])
    return np.asarray(weights).reshape(mask.shape)


def _make_loss(model, config, banned_ids):
    """(trained and all float32 parameters, micro-batch, token weights, KL weight) -> (loss, sums by metric)."""
    dtype, options = jnp.dtype(config.model.dtype), _log_prob_options(config, banned_ids)
    options["entropy_gradient"] = config.grpo.entropy_coefficient > 0

    def loss(trained, params, batch, weights, kl_weight):
        params = cast_params({**params, **trained}, dtype)
        logps, entropy = response_log_probs(model, params, batch.prompts, batch.responses, batch.mask, **options)
        batch = dataclasses.replace(batch, prompts=None)
        batch, weights, logps, entropy = jax.tree.map(_rows, (batch, weights, logps, entropy))
        losses, stats = token_objective(config.grpo, batch, logps, entropy, kl_weight)
        return jnp.sum(weights * losses), {name: masked_sum(values, batch.mask) for name, values in stats.items()}

    return loss


def _rows(x):
    """[N, G, ...] -> [N G, ...]."""
    return x.reshape(-1, *x.shape[2:])


def _token_means(sums):
    """The loss and `tokens` as they are, means of the others, NaN where there are no tokens."""
    known = {name: sums[name] for name in ("loss", "tokens")}
    return {name: total / sums["tokens"] for name, total in sums.items()} | known
