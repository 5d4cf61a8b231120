"""The programs of the engine: pure functions of parameters, caches and small tables.

Random keys derive from (key, prompt id, sample, position): a sample does not depend on what else is in the batch, nor
on slot, page, bucket or mesh.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from perception_r1_jax.inference.sampling import Sampling, sample
from perception_r1_jax.models import (
    KeyValues,
    ModelConfig,
    Params,
    Prefix,
    Tables,
    decode_step,
    prefill,
    response_angles,
)
from perception_r1_jax.records import Leaf, PromptBatch
from perception_r1_jax.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What is decoded in each slot.

    Attributes:
        tokens: int32 [D, B], the response's last token so far.
        lengths: int32 [D, B], how many tokens it has; position `lengths` is drawn next.
        limits: int32 [D, B], the most tokens that it may have; 0 for an empty slot.
        positions: int32 [D, B], M-RoPE position of its last token.
        prompt_ids: uint32 [D, B], for random keys.
        samples: int32 [D, B], its number in the group, for random keys.
        pages: int32 [D, B], the page that this stretch fills; past the last one for an empty slot.
        seen: int32 [D, B, S], prompt and response so far, filled up with ids past the vocabulary. None
            where sampling does not ask.
    """

    tokens: Leaf
    lengths: Leaf
    limits: Leaf
    positions: Leaf
    prompt_ids: Leaf
    samples: Leaf
    pages: Leaf
    seen: Leaf | None


class _Stretch(NamedTuple):
    """The state of the decoding loop: the tokens to feed at `step`, and what has come of them."""

    step: Leaf
    tokens: Leaf
    done: Leaf
    seen: Leaf | None
    recent: KeyValues
    out: Leaf
    logps: Leaf


def sample_keys(
    key: Key[Array, ""], prompt_ids: UInt[Array, "*B"], samples: Int[Array, "*B"], index: Int[Array, "*B"]
) -> Key[Array, "*B"]:
    """The key of each draw: from its prompt's id, its number in the group, and its position in the response."""

    def derive(prompt_id, sample, index):
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, prompt_id), sample), index)

    flat = jax.vmap(derive)(prompt_ids.ravel(), samples.ravel(), index.ravel())
    return flat.reshape(prompt_ids.shape)


def prefill_prompts(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch,
    embeddings: Float[Array, "N L D"],
    cache: KeyValues,
    places: Int[Array, "shards n"],
    key: Key[Array, ""],
    prefix: Prefix | None = None,
    *,
    samples: int,
    sampling: Sampling,
) -> tuple[KeyValues, Int[Array, "N G"], Float[Array, "N G"]]:
    """Runs prompts into their places of the pool, and draws the first token of each response from the same logits.

    Args:
        config: the model's shapes.
        params: `serving_params`.
        prompts: N = shards x n prompts, those of a shard in a run.
        embeddings: theirs.
        cache: the pool of prompts.
        places: their entries in it; past the last one for rows that only fill the batch.
        key: of the batch.
        prefix: of all prompts, where `prompts` are the rest of them.
        samples: G.
        sampling: how tokens are drawn.
    """
    logits, new = prefill(config, params, prompts, embeddings, places.shape[0], prefix)
    rows = (logits.shape[0], samples)
    logits = jnp.broadcast_to(logits[:, None], (*rows, logits.shape[-1]))
    prompt_ids = jnp.broadcast_to(prompts.prompt_ids[:, None], rows)
    numbers, index = jnp.broadcast_to(jnp.arange(samples)[None], rows), jnp.zeros(rows, jnp.int32)
    keys = sample_keys(key, prompt_ids, numbers, index)
    seen = None
    if sampling.repetition_penalty != 1:
        real = jnp.arange(prompts.tokens.shape[1])[None] < prompts.lengths[:, None]
        seen = occurring(jnp.where(real, prompts.tokens, logits.shape[-1]), logits.shape[-1])
        seen = jnp.broadcast_to(seen[:, None], logits.shape)
    tokens, logps = sample(logits, keys, sampling, index, seen)
    return cache.put(places, new), whole(tokens), whole(logps)


def decode_stretch(
    config: ModelConfig,
    params: Params,
    prompts: KeyValues,
    pages: KeyValues,
    slots: Slots,
    tables: Tables,
    key: Key[Array, ""],
    prefix: Prefix | None = None,
    *,
    dtype: DTypeLike,
    length: int,
    sampling: Sampling,
) -> tuple[KeyValues, Int[Array, "shards B K"], Float[Array, "shards B K"], Int[Array, ""]]:
    """Up to K tokens for every slot; ends when all are done.

    Args:
        config: the model's shapes.
        params: `serving_params`.
        prompts: the pool of prompts.
        pages: the pool of pages.
        slots: what is in the slots.
        tables: whose prompts and pages are whose.
        key: of the batch.
        prefix: of all prompts, where `prompts` are the rest of them.
        dtype: of what was fed since the last page.
        length: K, the tokens of a page.
        sampling: how tokens are drawn.

    Returns:
        The pages with the new ones, tokens, their log-probs, and how many steps were made. What stands after the
        end of a response, or after the last step, means nothing.
    """
    shape = slots.tokens.shape
    recent = KeyValues.empty(config, *shape, length, dtype).joined()
    start = _Stretch(
        step=jnp.int32(0),
        tokens=slots.tokens,
        done=slots.limits == 0,
        seen=None if slots.seen is None else occurring(slots.seen, config.vocab_size),
        recent=recent,
        out=jnp.zeros((*shape, length), jnp.int32),
        logps=jnp.zeros((*shape, length), jnp.float32),
    )

    angles = response_angles(config, slots.positions[None] + jnp.arange(length)[:, None, None])

    def body(at: _Stretch) -> _Stretch:
        now = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, at.step, keepdims=False), angles)
        logits, recent = decode_step(config, params, at.tokens, now, prompts, pages, at.recent, at.step, tables, prefix)
        index = slots.lengths + at.step
        keys = sample_keys(key, slots.prompt_ids, slots.samples, index)
        tokens, logps = sample(logits, keys, sampling, index, at.seen)
        seen = None if at.seen is None else at.seen | jax.nn.one_hot(tokens, config.vocab_size, dtype=bool)

        def put(buffer, new):
            return jax.lax.dynamic_update_index_in_dim(buffer, new, at.step, axis=2)

        stops = jnp.isin(tokens, np.asarray(sampling.stop_ids, np.int32))
        done = at.done | stops | (index + 1 >= slots.limits)
        return _Stretch(at.step + 1, tokens, done, seen, recent, put(at.out, tokens), put(at.logps, logps))

    end = jax.lax.while_loop(lambda at: (at.step < length) & ~at.done.all(), body, start)
    return pages.put(slots.pages, end.recent.apart(shape[0])), whole(end.out), whole(end.logps), end.step


def whole(x: jax.Array) -> jax.Array:
    """The array on every device, so that every host can read it."""
    return constrain(x, (None,) * x.ndim)


def occurring(tokens: Int[Array, "*B S"], vocabulary: int) -> Bool[Array, "*B V"]:
    """Which tokens stand in each row; those past the vocabulary fill the row up."""
    mark = jax.vmap(lambda row: jnp.zeros(vocabulary, bool).at[row].set(True, mode="drop"))
    return mark(tokens.reshape(-1, tokens.shape[-1])).reshape(*tokens.shape[:-1], vocabulary)
