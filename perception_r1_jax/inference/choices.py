"""Answers of a known form: the model only chooses between a few tokens at the places that are open.

What stands between two places is known, so it is fed together with the choice before it: an answer with M places takes
M - 1 steps behind the prompt, however long its text. Every sequence takes the same steps, so a batch runs from its
first token to its last choice in one program.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from perception_r1_jax.inference.programs import whole
from perception_r1_jax.models import ModelConfig, Params, Prefix, compute_logits, extend, prefill
from perception_r1_jax.records import Leaf, PromptBatch


class Between(NamedTuple):
    """The known text between the places of an answer.

    Attributes:
        tokens: int32 [M - 1, S], what follows each choice but the last, up to the next place.
        sizes: int32 [M - 1], how many tokens these are.
    """

    tokens: Leaf
    sizes: Leaf

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> Between:
        """From the token ids of each text."""
        tokens = np.zeros((len(texts), max(map(len, texts), default=0)), np.int32)
        for row, text in zip(tokens, texts):
            row[: len(text)] = text
        return cls(tokens, np.array([len(text) for text in texts], np.int32))

    @property
    def room(self) -> int:
        """Tokens of a cache that all of it is fed into: M - 1 blocks of a choice and what follows it."""
        return self.tokens.shape[0] * (self.tokens.shape[1] + 1)


def choose_tokens(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch,
    embeddings: Float[Array, "N L D"],
    between: Between,
    steps: Int[Array, ""],
    prefix: Prefix | None,
    *,
    choice_ids: tuple[int, ...],
) -> Float[Array, "N M choices"]:
    """Float32 logits of the choices at each place; the likeliest is fed on, the first of equals.

    Args:
        config: the model's shapes.
        params: `serving_params`.
        prompts: up to the first place.
        embeddings: theirs.
        between: the text from each place to the next.
        steps: places behind the first one that are wanted.
        prefix: of all prompts, where `prompts` are the rest of them.
        choice_ids: the tokens to choose from.
    """
    rows, length = prompts.tokens.shape
    ids = np.array(choice_ids, np.int32)
    logits, cache = prefill(config, params, prompts, embeddings, rows, prefix)
    found = jnp.zeros((rows, len(between.tokens) + 1, len(ids)), jnp.float32).at[:, 0].set(logits[:, ids])
    starts = jnp.cumsum(between.sizes + 1) - (between.sizes + 1)
    in_prompt = jnp.arange(length + between.room)[None] < prompts.lengths[:, None]

    def step(place, carried):
        found, cache = carried
        picked = jnp.asarray(ids)[jnp.argmax(found[:, place], axis=-1)]
        tokens = jnp.concatenate([picked[:, None], jnp.tile(between.tokens[place][None], (rows, 1))], axis=1)
        offsets = starts[place] + jnp.arange(tokens.shape[1])
        # What fills a block up lies where the next one is written, behind all that this one may attend to.
        index = jnp.arange(length + between.room)[None]
        fed = (index >= length) & (index <= length + offsets[:, None])
        hidden, cache = extend(
            config,
            params,
            tokens,
            prompts.next_position[:, None] + offsets[None],
            cache,
            length + starts[place],
            in_prompt[:, None] | fed[None],
            prefix,
        )
        logits = compute_logits(config, params, hidden[:, between.sizes[place]])
        return found.at[:, place + 1].set(logits[:, ids]), cache

    return whole(jax.lax.fori_loop(0, steps, step, (found, cache.widen(between.room)))[0])
