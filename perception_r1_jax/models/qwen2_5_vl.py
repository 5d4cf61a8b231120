"""The whole model as pure functions of (config, params, arrays). Params are a nested dict of arrays."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from perception_r1_jax.models.cache import PromptCache, ResponseCache
from perception_r1_jax.models.config import ModelConfig
from perception_r1_jax.models.decoder import Decoder
from perception_r1_jax.models.vision import VisionTower
from perception_r1_jax.records import AnyArray, PackedBatch, PromptBatch

Params = dict[str, Any]


class Qwen2_5_VL(nnx.Module):
    """A decoder, and a vision tower where the config has one."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.decoder = Decoder(config, rngs=rngs)
        self.vision = VisionTower(config.vision, rngs=rngs) if config.vision else None


@functools.lru_cache(maxsize=16)
def _skeleton(config: ModelConfig):
    """The model without arrays: its graph, and a state with the shape and logical axes of each parameter."""
    return nnx.split(nnx.eval_shape(lambda: Qwen2_5_VL(config, rngs=nnx.Rngs(0))))


def _model(config: ModelConfig, params: Params) -> Qwen2_5_VL:
    graph, state = _skeleton(config)
    variables = nnx.map_state(lambda path, variable: variable.replace(_at(params, path)), state)
    return nnx.merge(graph, variables)


def _at(tree: Params, path: tuple[str, ...]) -> jax.Array:
    return functools.reduce(lambda node, name: node[name], path, tree)


def abstract_params(config: ModelConfig) -> Params:
    """Shapes of all parameters, float32."""
    return nnx.to_pure_dict(_skeleton(config)[1])


def count_params(config: ModelConfig) -> int:
    """Numbers in all parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


def logical_axes(config: ModelConfig) -> Params:
    """For each parameter the tuple of its logical axes (`sharding.RULES`), "layers" first where it is stacked."""

    def axes(_, variable):
        stacked = len(variable.shape) - len(variable.logical_axes)
        return variable.replace(("layers",) * stacked + variable.logical_axes)

    return nnx.to_pure_dict(nnx.map_state(axes, _skeleton(config)[1]))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ModelConfig, key: Key[Array, ""]) -> Params:
    """Random parameters, float32: normal(0, 0.02) matrices, zero biases, unit norms."""
    return nnx.to_pure_dict(nnx.state(Qwen2_5_VL(config, rngs=nnx.Rngs(key))))


def cast_params(params: Params, dtype: DTypeLike) -> Params:
    """All parameters in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def embed_tokens(config: ModelConfig, params: Params, tokens: Int[AnyArray, "*B"]) -> Float[Array, "*B D"]:
    """Text embeddings."""
    return _model(config, params).decoder.embed_tokens(tokens)


def encode_images(
    config: ModelConfig, params: Params, prompts: PromptBatch | PackedBatch, *, remat: str = "none"
) -> Float[Array, "N units D"]:
    """Image features of each row by merge-unit slot, [N, 16 W, D]."""
    return _model(config, params).vision(
        prompts.patches, prompts.patch_positions, prompts.patch_valid, prompts.image_ids, remat
    )


def embed_prompts(
    config: ModelConfig, params: Params, prompts: PromptBatch | PackedBatch, *, remat: str = "none"
) -> Float[Array, "N L D"]:
    """Embeddings of rows with the image features in their places. Each picture is encoded once.

    Raises:
        ValueError: pictures for a text-only model.
    """
    embeddings = embed_tokens(config, params, prompts.tokens)
    if prompts.image_ids.shape[1] == 0:
        return embeddings
    if config.vision is None:
        raise ValueError("a text-only model was given pictures; use a qwen2_5_vl checkpoint.")
    features = encode_images(config, params, prompts, remat=remat)
    slots = jnp.maximum(prompts.image_slots, 0)[..., None]
    placed = jnp.take_along_axis(features, slots, axis=1)
    return jnp.where((prompts.image_slots >= 0)[..., None], placed, embeddings)


def forward(
    config: ModelConfig,
    params: Params,
    embeddings: Float[Array, "B T D"],
    positions: Int[AnyArray, "B 3 T"],
    mask: Bool[AnyArray, "B T T"],
    *,
    remat: str = "none",
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm. mask[b, t, s] says whether token t may attend to token s."""
    return _model(config, params).decoder.forward(embeddings, positions, mask, remat)


def compute_logits(config: ModelConfig, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """float32 logits of hidden states."""
    return _model(config, params).decoder.logits(hidden)


def prefill(config: ModelConfig, params: Params, prompts: PromptBatch) -> tuple[Float[Array, "N V"], PromptCache]:
    """Logits of the first response token of each prompt, and the prompts' cache. Each prompt is run once."""
    embeddings = embed_prompts(config, params, prompts)
    hidden, cache = _model(config, params).decoder.prefill(embeddings, prompts.positions, prompts.lengths)
    last = jnp.maximum(prompts.lengths - 1, 0)[:, None, None]
    return compute_logits(config, params, jnp.take_along_axis(hidden, last, axis=1)[:, 0]), cache


def decode_step(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "N G"],
    positions: Int[Array, " N"],
    prompt: PromptCache,
    response: ResponseCache,
    step: Int[Array, ""],
) -> tuple[Float[Array, "N G V"], ResponseCache]:
    """Feeds response token `step` of every sample and gives the logits of the next one.

    Args:
        config: the model's shapes.
        params: its parameters.
        tokens: the tokens to feed.
        positions: their M-RoPE position, the same on all axes.
        prompt: the prompts' cache, shared by the G samples of a prompt.
        response: the samples' own cache.
        step: index of these tokens in the response.
    """
    decoder = _model(config, params).decoder
    hidden, response = decoder.decode_step(decoder.embed_tokens(tokens), positions, prompt, response, step)
    return decoder.logits(hidden), response
