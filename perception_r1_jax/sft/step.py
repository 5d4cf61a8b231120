"""The compiled update of supervised training, and the compiled evaluation."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from perception_r1_jax.config import check_divides
from perception_r1_jax.models import ModelConfig, Params, cast_params
from perception_r1_jax.records import PackedBatch
from perception_r1_jax.sft.loss import summed_loss, summed_scores
from perception_r1_jax.sharding import constrain_batch, replicated
from perception_r1_jax.training.state import TrainState, abstract_state, state_options, state_shardings, trained_params
from perception_r1_jax.training.update import apply_gradients

Metrics = dict[str, Float[Array, ""]]
SftStep = Callable[[TrainState, PackedBatch], tuple[TrainState, Metrics]]


def make_sft_step(
    model: ModelConfig, config: ConfigDict, mesh: Mesh, optimizer: optax.GradientTransformation
) -> SftStep:
    """The compiled update: (state, batch) -> (state, metrics). The state is donated; place the batch with `put_batch`.

    The loss is the mean over the response tokens of the whole batch: each micro-batch of rows adds its share, so the
    split changes nothing but rounding.

    Args:
        model: the model's shapes.
        config: of the run; `sft`, `model`, `lora` and `optimizer` are read.
        mesh: where the state lies.
        optimizer: the one that made the state.

    Returns:
        The function. Its metrics are float32 scalars: `loss`, and those of `apply_gradients`.
        A batch that the micro-batches do not divide is a UserError on the first call, with the nearest sizes that do.
    """
    freeze_vision, size = config.model.freeze_vision, config.sft.micro_batch_rows
    shardings = state_shardings(abstract_state(model, optimizer, mesh, **state_options(config)))
    grad_shardings = trained_params(shardings.params, freeze_vision=freeze_vision)
    dtype = jnp.dtype(config.model.dtype)
    how = {"chunk": config.sft.log_prob_chunk, "remat": config.model.remat, "backend": config.model.attention}

    def loss(trained, params, batch, tokens):
        return summed_loss(model, cast_params({**params, **trained}, dtype), batch, **how) / tokens

    def step(state, batch):
        trained = trained_params(state.params, freeze_vision=freeze_vision)
        tokens = jnp.maximum(jnp.sum(batch.loss_mask, dtype=jnp.float32), 1.0)

        def add_micro_batch(grads, rows):
            value, more = jax.value_and_grad(loss)(trained, state.params, constrain_batch(rows), tokens)
            return jax.lax.with_sharding_constraint(jax.tree.map(jnp.add, grads, more), grad_shardings), value

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            micro_batches = _micro_batches(batch, size)
            grads, losses = jax.lax.scan(add_micro_batch, jax.tree.map(jnp.zeros_like, trained), micro_batches)
            state, metrics = apply_gradients(optimizer, state, trained, grads)
        return state, {"loss": jnp.sum(losses), **metrics}

    return jax.jit(step, donate_argnums=0, in_shardings=(shardings, None), out_shardings=(shardings, replicated(mesh)))


def make_sft_scores(model: ModelConfig, config: ConfigDict, mesh: Mesh) -> Callable[[Params, PackedBatch], Metrics]:
    """The compiled `summed_scores` of a batch, (params, batch) -> sums, in the same micro-batches as the step."""
    size, dtype = config.sft.micro_batch_rows, jnp.dtype(config.model.dtype)
    how = {"chunk": config.sft.log_prob_chunk, "backend": config.model.attention}

    def scores(params, batch):
        params = cast_params(params, dtype)

        def of_rows(_, rows):
            return None, summed_scores(model, params, rows, **how)

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            micro_batches = _micro_batches(batch, size)
            _, sums = jax.lax.scan(of_rows, None, micro_batches)
        return jax.tree.map(jnp.sum, sums)

    return jax.jit(scores, out_shardings=replicated(mesh))


def _micro_batches(batch: PackedBatch, size: int) -> PackedBatch:
    """[R, ...] -> [R / size, size, ...] of every array: micro-batch i of n has rows i, i + n, i + 2n, ...

    A device holds neighbouring rows, so every micro-batch has its part of the rows on every device already.
    """

    def split(x):
        check_divides("sft.micro_batch_rows", size, len(x))
        return jnp.moveaxis(x.reshape(size, len(x) // size, *x.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)
