"""Prefill and decoding of G samples for each of N prompts, as one pure function.

Random keys derive from (key, prompt id, sample, position): a sample does not depend on what else is in the
batch, nor on the bucket.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from perception_r1_jax.inference.sampling import Sampling, only, sample, tempered, token_logps
from perception_r1_jax.models import ModelConfig, Params, ResponseCache, decode_step, prefill
from perception_r1_jax.records import PromptBatch


class Responses(NamedTuple):
    """What `generate` gives: tokens, mask and log-probs [N, G, C], and stopped [N, G] (false: cut at the limit)."""

    tokens: Int[Array, "N G C"]
    mask: Bool[Array, "N G C"]
    logps: Float[Array, "N G C"]
    stopped: Bool[Array, "N G"]


class _Loop(NamedTuple):
    """The state of the decoding loop; `logits` are those of the token at `step`."""

    step: jax.Array
    logits: jax.Array
    done: jax.Array
    out: Responses
    cache: ResponseCache


def sample_keys(key: Key[Array, ""], prompt_ids: UInt[Array, " N"], samples: int) -> Key[Array, "N G"]:
    """One key per response, from its prompt's id and its number in the group."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return jax.vmap(lambda prompt: fold(prompt, jnp.arange(samples)))(fold(key, prompt_ids))


def generate(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch,
    key: Key[Array, ""],
    forced: Int[Array, "N C"] | None,
    *,
    samples: int,
    sampling: Sampling,
    choice_ids: tuple[int, ...] = (),
) -> Responses:
    """Generates `samples` responses to each prompt. Image and prompt are computed once per prompt.

    Args:
        config: the model's shapes.
        params: its parameters; logits are float32, all else has their dtype.
        prompts: N prompts; filler rows (length 0) are done from the start.
        key: the key of this batch, usually folded from (seed, step).
        forced: tokens that are written as they are; -1 where the model chooses. None: it chooses everywhere.
        samples: G.
        sampling: how tokens are drawn, and C.
        choice_ids: with `forced`, the only tokens that the model may choose; () leaves it all.
    """
    n, c = prompts.tokens.shape[0], sampling.max_new_tokens
    logits, prompt_cache = prefill(config, params, prompts)
    keys = sample_keys(key, prompts.prompt_ids, samples)
    filler = jnp.broadcast_to((prompts.lengths == 0)[:, None], (n, samples))
    shape = (n, samples, c)
    start = _Loop(
        step=jnp.int32(0),
        logits=jnp.broadcast_to(logits[:, None], (n, samples, logits.shape[-1])),
        done=filler,
        out=Responses(
            jnp.full(shape, sampling.pad_id, jnp.int32), jnp.zeros(shape, bool), jnp.zeros(shape, jnp.float32), filler
        ),
        cache=ResponseCache.empty(config, n, samples, c, prompt_cache.k.dtype),
    )
    fold = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(0, None)), in_axes=(0, None))

    def choose(loop: _Loop) -> tuple[jax.Array, jax.Array]:
        logits = loop.logits if forced is None else only(loop.logits, choice_ids)
        tokens, logps = sample(logits, fold(keys, loop.step), sampling)
        if forced is None:
            return tokens, logps
        given = jnp.broadcast_to(jax.lax.dynamic_index_in_dim(forced, loop.step, 1), tokens.shape)
        given_logps = token_logps(tempered(loop.logits, sampling), jnp.maximum(given, 0))
        return jnp.where(given >= 0, given, tokens), jnp.where(given >= 0, given_logps, logps)

    def body(loop: _Loop) -> _Loop:
        tokens, logps = choose(loop)
        out = _write(loop.out, loop.step, loop.done, tokens, logps, sampling)
        logits, cache = decode_step(
            config, params, tokens, prompts.next_position + loop.step, prompt_cache, loop.cache, loop.step
        )
        return _Loop(loop.step + 1, logits, out.stopped, out, cache)

    end = jax.lax.while_loop(lambda loop: (loop.step < c) & ~loop.done.all(), body, start)
    return end.out


def _write(out: Responses, step, done, tokens, logps, sampling: Sampling) -> Responses:
    """Puts a step's tokens into the unfinished responses."""

    def put(buffer, new):
        return jax.lax.dynamic_update_index_in_dim(buffer, new, step, axis=2)

    stops = jnp.isin(tokens, np.asarray(sampling.stop_ids, np.int32))
    return Responses(
        tokens=put(out.tokens, jnp.where(done, sampling.pad_id, tokens)),
        mask=put(out.mask, ~done),
        logps=put(out.logps, jnp.where(done, 0.0, logps)),
        stopped=done | stops,
    )
