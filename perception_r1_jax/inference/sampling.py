"""Sampling: pure functions from logits and keys to tokens. Greedy is the case of temperature 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        max_new_tokens: C, the most tokens of a response.
        stop_ids: a response ends with the first of these.
        pad_id: what stands after a response's end.
        temperature: 0 is greedy. Log-probs are those at this temperature (at 1 for greedy).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach this sum; 1 keeps all.
        banned_ids: never drawn, and outside of the softmax that log-probs come from.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    banned_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if self.max_new_tokens < 1 or not self.stop_ids:
            raise ValueError(f"sampling needs max_new_tokens >= 1 and at least one stop id, got {self}.")
        if not 0 <= self.temperature < np.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self}.")


def ban(logits: Float[Array, "*B V"], ids: tuple[int, ...]) -> Float[Array, "*B V"]:
    """Logits with -inf at these ids."""
    return jnp.where(_membership(logits, ids), -jnp.inf, logits) if ids else logits


def only(logits: Float[Array, "*B V"], ids: tuple[int, ...]) -> Float[Array, "*B V"]:
    """Logits with -inf everywhere but at these ids; () leaves all."""
    return jnp.where(_membership(logits, ids), logits, -jnp.inf) if ids else logits


def _membership(logits: jax.Array, ids: tuple[int, ...]) -> np.ndarray:
    """A mask of the logits' rank, true at the ids."""
    member = np.zeros(logits.shape[-1], bool)
    member[list(ids)] = True
    return member.reshape((1,) * (logits.ndim - 1) + (-1,))


def tempered(logits: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B V"]:
    """Logits of the distribution that log-probs come from: no banned ids, at the temperature (at 1 for greedy)."""
    return ban(logits, sampling.banned_ids) / (sampling.temperature or 1.0)


def sample(
    logits: Float[Array, "N G V"], keys: Key[Array, "N G"], sampling: Sampling
) -> tuple[Int[Array, "N G"], Float[Array, "N G"]]:
    """Draws a token per row and gives its log-prob at the temperature, before top-k and top-p."""
    logits = tempered(logits, sampling)
    if sampling.temperature == 0:
        tokens = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return tokens, token_logps(logits, tokens)
    kept = jnp.where(keep_likeliest(logits, sampling.top_k, sampling.top_p), logits, -jnp.inf)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], jnp.float32)))(keys)
    tokens = jnp.argmax(kept + noise, axis=-1).astype(jnp.int32)
    return tokens, token_logps(logits, tokens)


def token_logps(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-probability of each token, log softmax(logits)."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def keep_likeliest(logits: Float[Array, "*B V"], top_k: int, top_p: float) -> Bool[Array, "*B V"]:
    """Which tokens survive top-k, and then top-p among the survivors. The vocabulary is never sorted.

    Tokens as likely as the last one kept are kept too.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    keep = jnp.ones(probs.shape, bool)
    if 0 < top_k < probs.shape[-1]:
        keep = probs >= _largest_threshold(probs, lambda kept: kept.sum(-1) >= top_k)
    if top_p < 1:
        probs = jnp.where(keep, probs, 0.0)
        target = top_p * probs.sum(-1)
        keep = probs >= _largest_threshold(probs, lambda kept: jnp.where(kept, probs, 0.0).sum(-1) >= target)
    return keep


def _largest_threshold(probs: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest float t for which `enough(probs >= t)`, by binary search over its bits.

    Non-negative floats are ordered as their bit patterns are, so 31 masked reductions find t exactly.
    """

    def set_bit(i, bits):
        candidate = bits | (1 << (30 - i))
        threshold = jax.lax.bitcast_convert_type(candidate, jnp.float32)[..., None]
        return jnp.where(enough(probs >= threshold), candidate, bits)

    bits = jax.lax.fori_loop(0, 31, set_bit, jnp.zeros(probs.shape[:-1], jnp.int32))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)[..., None]
