"""How well a model predicts the responses of packed conversations."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from perception_r1_jax.grpo.log_probs import target_log_probs
from perception_r1_jax.models import (
    ModelConfig,
    Params,
    compute_logits,
    embed_prompts,
    forward,
    map_blocks,
    packed_segments,
)
from perception_r1_jax.records import PackedBatch


def summed_loss(
    config: ModelConfig,
    params: Params,
    batch: PackedBatch,
    *,
    chunk: int,
    remat: str = "none",
    backend: str = "xla",
) -> Float[Array, ""]:
    """Negative log-likelihood in nats, summed over the tokens that `batch.loss_mask` marks.

    The logits are made for `chunk` marked tokens of each row at a time, and once more in the backward pass.
    """

    def losses(logits, targets):
        logps, _ = target_log_probs(logits, targets)
        return (-logps,)

    (loss,) = _sum_over_marked(config, params, batch, losses, chunk, remat=remat, backend=backend)
    return loss


def summed_scores(
    config: ModelConfig, params: Params, batch: PackedBatch, *, chunk: int, backend: str = "xla"
) -> dict[str, Float[Array, ""]]:
    """Sums over the marked tokens: `loss` as in `summed_loss`, `token_accuracy` and their number, `tokens`.

    A token counts as right where no other one has a higher logit.
    """

    def scores(logits, targets):
        logps, normaliser = target_log_probs(logits, targets)
        best = jnp.max(logits, axis=-1) - normaliser
        return -logps, (logps >= best).astype(jnp.float32)

    loss, right = _sum_over_marked(config, params, batch, scores, chunk, backend=backend)
    return {"loss": loss, "token_accuracy": right, "tokens": jnp.sum(batch.loss_mask, dtype=jnp.float32)}


def _sum_over_marked(
    config: ModelConfig, params: Params, batch: PackedBatch, score: Callable[..., tuple], chunk: int, **how: str
) -> tuple[Float[Array, ""], ...]:
    """Sums of what `score` makes of (logits [R, chunk, V] before tokens, these tokens [R, chunk]), arrays [R, chunk].

    The marked tokens of each row are brought to its front: the chunks behind them have none, and make no logits.
    """
    embeddings = embed_prompts(config, params, batch, **how)
    hidden = forward(config, params, embeddings, batch.positions, packed_segments(batch.segment_ids), **how)
    order = jnp.argsort(~jnp.asarray(batch.loss_mask[:, 1:]), axis=1, stable=True)
    before = jnp.take_along_axis(hidden[:, :-1], order[..., None], axis=1)
    targets, marked = (jnp.take_along_axis(x[:, 1:], order, axis=1) for x in (batch.tokens, batch.loss_mask))

    def of_chunk(inputs):
        hidden, targets, marked = inputs

        def scores():
            return score(compute_logits(config, params, hidden), targets)

        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(scores))
        found = jax.lax.cond(jnp.any(marked), scores, lambda: nothing)
        return jax.tree.map(lambda x: jnp.where(marked, x, 0.0), found)

    return jax.tree.map(jnp.sum, map_blocks(of_chunk, (before, targets, marked), min(chunk, before.shape[1])))
