"""What the shared work must equal: a row for every response, with the whole prompt in each."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from perception_r1_jax.models import ModelConfig, Params, embed_prompts, embed_tokens, forward
from perception_r1_jax.records import PromptBatch


def predicting_states(config: ModelConfig, params: Params, prompts: PromptBatch, tokens, mask):
    """Hidden states [N, G, C, D] that predict each response token."""
    n, g, c = tokens.shape
    rows = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), g, axis=0), prompts)
    tokens, mask = tokens.reshape(n * g, c), mask.reshape(n * g, c)
    x = jnp.concatenate([embed_prompts(config, params, rows), embed_tokens(config, params, tokens)], axis=1)
    after = jnp.broadcast_to((rows.next_position[:, None] + jnp.arange(c)[None])[:, None], (n * g, 3, c))
    positions = jnp.concatenate([rows.positions, after], axis=2)
    length = rows.tokens.shape[1]
    valid = jnp.concatenate([jnp.arange(length)[None] < rows.lengths[:, None], mask], axis=1)
    hidden = forward(config, params, x, positions, causal_mask(valid))
    first = jnp.take_along_axis(hidden, jnp.maximum(rows.lengths - 1, 0)[:, None, None], axis=1)
    return jnp.concatenate([first, hidden[:, length:-1]], axis=1).reshape(n, g, c, -1)


def causal_mask(valid):
    """What each token of rows [B, T] may attend to, [B, T, T]: itself and what stands before it, if it is valid."""
    length = valid.shape[1]
    return jnp.tril(jnp.ones((length, length), bool))[None] & valid[:, None, :]


def prompt_mask(prompts: PromptBatch):
    """What the tokens of prompts by themselves may attend to, [N, L, L]."""
    return causal_mask(jnp.arange(prompts.tokens.shape[1])[None] < prompts.lengths[:, None])
