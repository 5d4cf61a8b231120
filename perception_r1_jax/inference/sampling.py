"""Sampling: pure functions from logits and keys to tokens. Greedy is the case of temperature 0."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from perception_r1_jax.inference.stop import STOP_STRINGS, are_stop_strings
from perception_r1_jax.sharding import constrain

BLOCK = 128
"""Tokens of the vocabulary whose probabilities are summed at a time when one is drawn."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Log-probs are those that training computes: at the temperature, with banned ids outside the softmax. All else only
    changes what is drawn, in the order of `transformers`: repetition penalty, minimum of tokens, top-k, top-p, min-p.

    Attributes:
        max_new_tokens: C, the most tokens of a response.
        stop_ids: a response ends with the first of these.
        pad_id: what stands after a response's end.
        temperature: 0 is greedy. Log-probs are those at this temperature (at 1 for greedy).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities first reach this sum; 1 keeps all.
        min_p: keep tokens at least this times as probable as the likeliest; 0 keeps all.
        banned_ids: never drawn, and outside of the softmax that log-probs come from.
        min_new_tokens: no stop id is drawn before a response has so many tokens. A stop string may end it sooner.
        stop_strings: a response ends with the token that completes the first of these in its text, and keeps it.
        repetition_penalty: divides the positive logits of tokens that stand in prompt or response, and multiplies their
            negative ones (arXiv 1909.05858); 1 changes nothing.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    pad_id: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    banned_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    stop_strings: tuple[str, ...] = ()
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1 or not self.stop_ids:
            raise ValueError(f"sampling needs max_new_tokens >= 1 and at least one stop id, got {self}.")
        if not 0 <= self.temperature < np.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1, got {self}.")
        if not 0 <= self.min_p <= 1 or not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise ValueError(f"sampling needs 0 <= min_p <= 1 and 0 <= min_new_tokens <= max_new_tokens, got {self}.")
        if not 0 < self.repetition_penalty < np.inf:
            raise ValueError(f"sampling needs a finite repetition_penalty > 0, got {self}.")
        if not are_stop_strings(self.stop_strings):
            raise ValueError(f"sampling needs stop_strings that are {STOP_STRINGS}, got {self}.")


def ban(logits: Float[Array, "*B V"], ids: tuple[int, ...]) -> Float[Array, "*B V"]:
    """Logits with -inf at these ids."""
    return jnp.where(_membership(logits, ids), -jnp.inf, logits) if ids else logits


def _membership(logits: jax.Array, ids: tuple[int, ...]) -> np.ndarray:
    """A mask of the logits' rank, true at the ids."""
    member = np.zeros(logits.shape[-1], bool)
    member[list(ids)] = True
    return member.reshape((1,) * (logits.ndim - 1) + (-1,))


def tempered(logits: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B V"]:
    """Logits of the distribution that log-probs come from: no banned ids, at the temperature (at 1 for greedy)."""
    return ban(logits, sampling.banned_ids) / (sampling.temperature or 1.0)


def sample(
    logits: Float[Array, "*B V"],
    keys: Key[Array, "*B"],
    sampling: Sampling,
    index: Int[Array, "*B"] | None = None,
    seen: Bool[Array, "*B V"] | None = None,
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Draws a token per row, and gives its log-prob under `tempered`: before all else that shapes the draw.

    Args:
        logits: of the model.
        keys: one per row: what a row draws depends on its own key and logits alone.
        sampling: how to draw.
        index: tokens that each response has already; needed with `min_new_tokens`.
        seen: which tokens stand in a row's prompt or response; needed with `repetition_penalty`.

    Raises:
        ValueError: `index` or `seen` is needed and not given.
    """
    logits = tempered(logits, sampling)
    scores = shaped(logits, sampling, index, seen)
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32) if sampling.temperature == 0 else _pick(scores, keys)
    return tokens, token_logps(logits, tokens)


def shaped(
    logits: Float[Array, "*B V"],
    sampling: Sampling,
    index: Int[Array, "*B"] | None = None,
    seen: Bool[Array, "*B V"] | None = None,
) -> Float[Array, "*B V"]:
    """Logits of the distribution that is drawn from, made of `tempered` ones; arguments and errors as of `sample`.

    That `transformers` divides by the temperature after the penalty makes no difference: it keeps the logits' signs.
    """
    if sampling.repetition_penalty != 1:
        if seen is None:
            raise ValueError(f"repetition_penalty = {sampling.repetition_penalty} needs `seen`, the tokens so far.")
        penalty = sampling.repetition_penalty
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    if sampling.min_new_tokens > 0:
        if index is None:
            raise ValueError(f"min_new_tokens = {sampling.min_new_tokens} needs `index`, the responses' lengths.")
        short = (index < sampling.min_new_tokens)[..., None]
        logits = jnp.where(short, ban(logits, sampling.stop_ids), logits)
    return jnp.where(keep_likeliest(logits, sampling.top_k, sampling.top_p, sampling.min_p), logits, -jnp.inf)


def _pick(scores: Float[Array, "*B V"], keys: Key[Array, "*B"]) -> Int[Array, "*B"]:
    """The first token at which the cumulated probability passes a random number.

    One random number a row: noise for each token of the vocabulary would take longer than the model's head. The sums
    are made by blocks first, then within one block, so that none is longer than some hundred terms.
    """
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    padding = [(0, 0)] * (weights.ndim - 1) + [(0, -weights.shape[-1] % BLOCK)]
    blocks = jnp.pad(weights, padding).reshape(*weights.shape[:-1], -1, BLOCK)
    blocks = constrain(blocks, ("batch", *[None] * (blocks.ndim - 3), "vocab", None)[-blocks.ndim :])
    shares = blocks.sum(-1)
    ends = jnp.cumsum(shares, axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys.ravel()).reshape(keys.shape)
    mark = uniform * ends[..., -1]
    block = _first_above(shares, ends, mark)[..., None]
    before = jnp.where(block > 0, jnp.take_along_axis(ends, jnp.maximum(block - 1, 0), axis=-1), 0.0)[..., 0]
    within = jnp.take_along_axis(blocks, block[..., None], axis=-2)[..., 0, :]
    return block[..., 0] * BLOCK + _first_above(within, jnp.cumsum(within, axis=-1), mark - before)


def _first_above(
    weights: Float[Array, "*B S"], sums: Float[Array, "*B S"], mark: Float[Array, "*B"]
) -> Int[Array, "*B"]:
    """The first place whose sum is above the mark; where rounding has put the mark at the end, the one that reaches it.

    Only places with a weight are looked at: cumulated on a device, sums may fall by a rounding at those without.
    """
    sums = jnp.where(weights > 0, sums, -1.0)
    return jnp.argmax((sums > mark[..., None]) | (sums == sums.max(-1, keepdims=True)), axis=-1).astype(jnp.int32)


def token_logps(logits: Float[Array, "*B V"], tokens: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Log-probability of each token, log softmax(logits)."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def keep_likeliest(logits: Float[Array, "*B V"], top_k: int, top_p: float, min_p: float) -> Bool[Array, "*B V"]:
    """Which tokens survive top-k, then top-p among the survivors, then min-p. The vocabulary is never sorted.

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
    if min_p > 0:
        keep &= probs >= min_p * probs.max(-1, keepdims=True)
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
