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
    contract_rows,
    embed_prompts,
    embed_tokens,
    forward_groups,
    output_matrix,
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

    All positions meet a block of the vocabulary at a time, of such a size that there are no more logits than `chunk`
    positions of each row have. They are made once more in the backward pass. So the output matrix comes from other
    devices a block at a time, too, and the sum of its gradient goes back to them likewise.

    Args:
        config: the model's shapes.
        params: its parameters.
        hidden: states after the final norm, each of which predicts the target at its place.
        targets: token ids.
        temperature: the logits are divided by it, as in sampling.
        banned_ids: tokens that sampling never takes; they have no share in the softmax.
        chunk: positions of each row, as many as may have all of their logits at a time.
        entropy_gradient: true lets the gradient flow through the entropy.

    Returns:
        Both float32, in nats.
    """
    matrix, first_words = _blocks_of_words(output_matrix(config, params), -(-hidden.shape[1] // chunk))
    banned = np.isin(np.arange(first_words[-1] + matrix.shape[1]), banned_ids)
    banned[config.vocab_size :] = True  # words that fill the last block up
    of_entropy = (lambda x: x) if entropy_gradient else jax.lax.stop_gradient
    dtype, wide = hidden.dtype, hidden.astype(jnp.float32)  # the gradients that blocks give it add up in float32

    def of_block(inputs):
        matrix, banned, first_word = inputs
        logits = contract_rows(wide.astype(dtype), constrain(matrix, ("vocab", "embed"))) / temperature
        logits = constrain(jnp.where(banned[None, None], BANNED_LOGIT, logits), ("batch", None, "vocab"))
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        within = _entropy(*of_entropy((logits, normaliser)))
        return normaliser, picked_logits(logits, targets - first_word), within

    # The map already keeps XLA from merging the recomputation with the forward pass.
    step = jax.checkpoint(of_block, prevent_cse=False)
    normalisers, picked, within = jax.lax.map(step, (matrix, banned.reshape(len(first_words), -1), first_words))
    normaliser = jax.nn.logsumexp(normalisers, axis=0)
    # A word is drawn in two draws: its block, then the word within it. The entropies of the two add up.
    block_logps = of_entropy(normalisers - normaliser[None])
    entropy = jnp.sum(jnp.exp(block_logps) * (within - block_logps), axis=0)
    return jnp.sum(picked, axis=0) - normaliser, entropy


def _blocks_of_words(
    matrix: Float[Array, "V D"], count: int
) -> tuple[Float[Array, "blocks v D"], Int[np.ndarray, " blocks"]]:
    """At most so many blocks of words, the last one filled up with zeros, and each block's first word."""
    size = -(-matrix.shape[0] // count)
    matrix = jnp.pad(matrix, [(0, -matrix.shape[0] % size), (0, 0)]).reshape(-1, size, matrix.shape[1])
    return matrix, np.arange(matrix.shape[0], dtype=np.int32) * size


def _entropy(logits: Float[Array, "B C V"], normaliser: Float[Array, "B C"]) -> Float[Array, "B C"]:
    logps = logits - normaliser[..., None]
    return -jnp.sum(jnp.exp(logps) * logps, axis=-1)


def target_log_probs(
    logits: Float[Array, "B C V"], targets: Int[AnyArray, "B C"]
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Log-probability of each target, and the log-sum-exp of its logits."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return picked_logits(logits, targets) - normaliser, normaliser


def picked_logits(logits: Float[Array, "B C V"], targets: Int[AnyArray, "B C"]) -> Float[Array, "B C"]:
    """The targets' logits, 0 for a target that is none of the words.

    A comparison with every id picks them: unlike a gather it stays local on a split vocabulary.
    """
    is_target = jnp.arange(logits.shape[-1])[None, None] == targets[..., None]
    return jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)


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
