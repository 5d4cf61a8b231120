"""Log-probabilities of response tokens, without ever holding the logits of a whole response."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from perception_r1_jax.models import (
    ModelConfig,
    Params,
    compute_logits,
    embed_prompts,
    embed_tokens,
    forward_groups,
    map_blocks,
)
from perception_r1_jax.records import AnyArray, PromptBatch
from perception_r1_jax.sharding import constrain

BANNED_LOGIT = -1e30
"""Takes a token out of the softmax, and unlike -inf leaves no NaN where a masked target is such a token."""


def token_log_probs(
    config: ModelConfig,
    params: Params,
    hidden: Float[Array, "B C D"],
    targets: Int[AnyArray, "B C"],
    *,
    temperature: float = 1.0,
    banned_ids: Sequence[int] = (),
    chunk: int = 512,
    entropy_gradient: bool = False,
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Log-probability of each target under the hidden state that predicts it, and the distribution's entropy.

    The logits are made for `chunk` positions of all B rows at a time, and once more in the backward pass, so that
    [B, chunk, V] is the most there is of them.

    Args:
        config: the model's shapes.
        params: its parameters.
        hidden: states after the final norm, each of which predicts the target at its place.
        targets: token ids.
        temperature: the logits are divided by it, as in sampling.
        banned_ids: tokens that sampling never takes; they have no share in the softmax.
        chunk: positions at a time; rows stay whole, since they are what the mesh splits.
        entropy_gradient: true lets the gradient flow through the entropy.

    Returns:
        Both float32, in nats.
    """
    banned = np.isin(np.arange(config.vocab_size), banned_ids)[None, None]

    def chunk_log_probs(inputs):
        hidden, targets = inputs
        logits = jnp.where(banned, BANNED_LOGIT, compute_logits(config, params, hidden) / temperature)
        return _log_prob_and_entropy(logits, targets, entropy_gradient)

    return map_blocks(chunk_log_probs, (hidden, targets), min(chunk, hidden.shape[1]))


def target_log_probs(
    logits: Float[Array, "B C V"], targets: Int[AnyArray, "B C"]
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Log-probability of each target, and the log-sum-exp of its logits.

    A comparison with every id picks the target's logit: unlike a gather it stays local on a split vocabulary.
    """
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    is_target = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    return jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1) - normaliser, normaliser


def response_log_probs(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch,
    responses: Int[AnyArray, "N G C"],
    mask: Bool[AnyArray, "N G C"],
    *,
    temperature: float = 1.0,
    banned_ids: Sequence[int] = (),
    chunk: int = 512,
    entropy_gradient: bool = False,
    remat: str = "none",
    backend: str = "xla",
) -> tuple[Float[Array, "N G C"], Float[Array, "N G C"]]:
    """Log-probability and entropy (`token_log_probs`) of each response token after its prompt.

    A group is one row: the prompt in its bucket L, with its pictures, once for all G responses, then these in their
    bucket C. Each response sees the prompt and itself (`models.forward_groups`). With a prompt of 3 tokens, L = 4 and
    responses a and b of 2 tokens, C = 3:

        index        0   1   2   3   4   5   6   7   8   9
        token        p0  p1  p2  -   a0  a1  -   b0  b1  -
        position     0   1   2   -   3   4   5   3   4   5       (text only; on all three axes after the prompt)
        predicts         -   *       a1  -   -   b1  -   -       * a0 and b0

    Args:
        config: the model's shapes.
        params: its parameters.
        prompts: padded on the right.
        responses: token ids, padded on the right.
        mask: true on the tokens of the responses.
        temperature: as in `token_log_probs`.
        banned_ids: as in `token_log_probs`.
        chunk: as in `token_log_probs`; the positions are those of all G responses, one after the other.
        entropy_gradient: as in `token_log_probs`.
        remat: what the layers keep for the backward pass (`models.REMAT_POLICIES`).
        backend: of attention (`models.BACKENDS`).

    Returns:
        Both float32; numbers outside the mask are finite and mean nothing, rows of filler prompts included.
    """
    n, g, c = responses.shape
    targets = responses.reshape(n, g * c)
    how = {"remat": remat, "backend": backend}
    parts = [embed_prompts(config, params, prompts, **how), embed_tokens(config, params, targets)]
    embeddings = constrain(jnp.concatenate(parts, axis=1), ("batch", None, None))
    in_prompt = jnp.arange(prompts.tokens.shape[1])[None] < prompts.lengths[:, None]
    hidden = forward_groups(config, params, embeddings, group_positions(prompts, g, c), in_prompt, mask, **how)
    logps, entropy = token_log_probs(
        config,
        params,
        predicting_states(hidden, prompts.lengths, g, c),
        targets,
        temperature=temperature,
        banned_ids=banned_ids,
        chunk=chunk,
        entropy_gradient=entropy_gradient,
    )
    return logps.reshape(n, g, c), entropy.reshape(n, g, c)


def group_positions(prompts: PromptBatch, samples: int, response_length: int) -> Int[Array, "N 3 T"]:
    """M-RoPE positions of a prompt followed by its responses: each counts on from `next_position`."""
    after = prompts.next_position[:, None] + jnp.tile(jnp.arange(response_length, dtype=jnp.int32), samples)[None]
    after = jnp.broadcast_to(after[:, None], (after.shape[0], 3, after.shape[1]))
    return jnp.concatenate([prompts.positions, after], axis=2)


def predicting_states(
    hidden: Float[Array, "N T D"], lengths: Int[AnyArray, " N"], samples: int, response_length: int
) -> Float[Array, "N GC D"]:
    """The hidden states that predict the responses: the prompt's last token's, then each response's but its last."""
    n, _, size = hidden.shape
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    first = jnp.take_along_axis(hidden, last, axis=1)[:, None]
    own = hidden[:, -samples * response_length :].reshape(n, samples, response_length, size)
    states = jnp.concatenate([jnp.broadcast_to(first, (n, samples, 1, size)), own[:, :, :-1]], axis=2)
    return states.reshape(n, samples * response_length, size)


def _log_prob_and_entropy(logits, targets, entropy_gradient):
    logps, normaliser = target_log_probs(logits, targets)
    all_logps = logits - normaliser[..., None]
    if not entropy_gradient:
        all_logps = jax.lax.stop_gradient(all_logps)
    return logps, -jnp.sum(jnp.exp(all_logps) * all_logps, axis=-1)
