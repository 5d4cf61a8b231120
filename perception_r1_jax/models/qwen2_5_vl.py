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

from perception_r1_jax.models.attention import Segments, attention
from perception_r1_jax.models.cache import KeyValues
from perception_r1_jax.models.cached_attention import Tables
from perception_r1_jax.models.config import ModelConfig
from perception_r1_jax.models.decoder import Decoder
from perception_r1_jax.models.group_attention import group_attention
from perception_r1_jax.models.lora import Adapted, attach_adapters
from perception_r1_jax.models.prefix import Prefix
from perception_r1_jax.models.quantized import Int8, quantize_weight
from perception_r1_jax.models.rope import Angles, text_angles
from perception_r1_jax.models.vision import VisionTower
from perception_r1_jax.records import AnyArray, PackedBatch, PromptBatch
from perception_r1_jax.sharding import constrain

Params = dict[str, Any]


class Qwen2_5_VL(nnx.Module):
    """A decoder, and a vision tower where the config has one."""

    def __init__(self, config: ModelConfig, *, serving: bool = False, rngs: nnx.Rngs):
        self.decoder = Decoder(config, serving=serving, rngs=rngs)
        self.vision = VisionTower(config.vision, rngs=rngs) if config.vision else None


@functools.lru_cache(maxsize=16)
def _skeleton(config: ModelConfig, serving: bool = False):
    """The model without arrays: its graph, and a state with the shape and logical axes of each parameter."""
    return nnx.split(nnx.eval_shape(lambda: Qwen2_5_VL(config, serving=serving, rngs=nnx.Rngs(0))))


def _model(config: ModelConfig, params: Params) -> Qwen2_5_VL:
    params = attach_adapters(params)
    graph, state = _skeleton(config, serving=0 in params["decoder"]["layers"])
    variables = nnx.map_state(lambda path, variable: variable.replace(_at(params, path)), state)
    return nnx.merge(graph, variables)


def _at(tree: Params, path: tuple[str | int, ...]) -> jax.Array | Int8 | Adapted:
    return functools.reduce(lambda node, name: node[name], path, tree)


def abstract_params(config: ModelConfig) -> Params:
    """Shapes of all parameters, float32."""
    return nnx.to_pure_dict(_skeleton(config)[1])


def count_params(config: ModelConfig) -> int:
    """Numbers in all parameters."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


def logical_axes(config: ModelConfig, *, serving: bool = False, int8: bool = False) -> Params:
    """For each parameter the tuple of its logical axes (`sharding.RULES`), "layers" first where it is stacked.

    With `serving` the tree is that of `serving_params`, with `int8` too that of `quantized_params`.
    """

    def axes(_, variable):
        stacked = len(variable.shape) - len(variable.logical_axes)
        return variable.replace(("layers",) * stacked + variable.logical_axes)

    def with_scales(names, summed):
        scales = tuple(name for axis, name in enumerate(names) if axis not in summed)
        return Int8(names, scales) if summed else names

    tree = nnx.to_pure_dict(nnx.map_state(axes, _skeleton(config, serving)[1]))
    if not int8:
        return tree
    return jax.tree.map(with_scales, tree, summed_axes(config), is_leaf=lambda node: isinstance(node, tuple))


def summed_axes(config: ModelConfig) -> Params:
    """For each of the `serving_params` the axes that products sum over; () for vectors, and outside of the decoder."""

    def axes(path, variable):
        return variable.replace(variable.get_metadata().get("summed", ()) if path[0] == "decoder" else ())

    return nnx.to_pure_dict(nnx.map_state(axes, _skeleton(config, serving=True)[1]))


@functools.partial(jax.jit, static_argnums=0)
def init_params(config: ModelConfig, key: Key[Array, ""]) -> Params:
    """Random parameters, float32: normal(0, 0.02) matrices, zero biases, unit norms."""
    return nnx.to_pure_dict(nnx.state(Qwen2_5_VL(config, rngs=nnx.Rngs(key))))


def cast_params(params: Params, dtype: DTypeLike) -> Params:
    """All parameters in another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def serving_params(params: Params) -> Params:
    """Parameters as `prefill` and `decode_step` take them: each layer of the decoder apart, not stacked."""
    stacked = params["decoder"]["layers"]

    def layer(index):
        return jax.tree.map(lambda x: x[index], stacked)

    layers = {index: layer(index) for index in range(len(jax.tree.leaves(stacked)[0]))}
    return {**params, "decoder": {**params["decoder"], "layers": layers}}


def quantized_params(config: ModelConfig, params: Params, dtype: DTypeLike) -> Params:
    """`serving_params` with the decoder's matrices in 8 bits, a scale for each output, and the rest in `dtype`."""
    return jax.tree.map(lambda x, summed: quantize_weight(x, summed, dtype), params, summed_axes(config))


def embed_tokens(config: ModelConfig, params: Params, tokens: Int[AnyArray, "*B"]) -> Float[Array, "*B D"]:
    """Text embeddings."""
    return _model(config, params).decoder.embed_tokens(tokens)


def encode_images(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch | PackedBatch,
    *,
    remat: str = "none",
    backend: str = "xla",
) -> Float[Array, "N units D"]:
    """Image features of each row by merge-unit slot, [N, 16 W, D]."""
    return _model(config, params).vision(
        prompts.patches, prompts.patch_positions, prompts.patch_valid, prompts.image_ids, remat, backend
    )


def embed_prompts(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch | PackedBatch,
    *,
    remat: str = "none",
    backend: str = "xla",
) -> Float[Array, "N L D"]:
    """Embeddings of rows with the image features in their places. Each picture is encoded once.

    Raises:
        ValueError: pictures for a text-only model.
    """
    # By rows before the features join them: laid out like the lookup, they would gather what the vision tower makes.
    embeddings = constrain(embed_tokens(config, params, prompts.tokens), ("batch", None, None))
    if prompts.image_ids.shape[1] == 0:
        return embeddings
    if config.vision is None:
        raise ValueError("a text-only model was given pictures; use a qwen2_5_vl checkpoint.")
    features = encode_images(config, params, prompts, remat=remat, backend=backend)
    slots = jnp.maximum(prompts.image_slots, 0)[..., None]
    placed = jnp.take_along_axis(features, slots, axis=1)
    return jnp.where((prompts.image_slots >= 0)[..., None], placed, embeddings)


def forward(
    config: ModelConfig,
    params: Params,
    embeddings: Float[Array, "B T D"],
    positions: Int[AnyArray, "B 3 T"],
    mask: Bool[AnyArray, "B T T"] | Segments,
    *,
    remat: str = "none",
    backend: str = "xla",
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm. mask[b, t, s] says whether token t may attend to token s."""
    attend = functools.partial(attention, mask=mask, backend=backend)
    return _model(config, params).decoder.forward(embeddings, positions, attend, remat)


def forward_groups(
    config: ModelConfig,
    params: Params,
    embeddings: Float[Array, "N T D"],
    positions: Int[AnyArray, "N 3 T"],
    in_prompt: Bool[AnyArray, "N L"],
    in_response: Bool[AnyArray, "N G C"],
    *,
    remat: str = "none",
    backend: str = "xla",
) -> Float[Array, "N T D"]:
    """Hidden states after the final norm of rows of a prompt and G responses to it (`group_attention`)."""
    attend = functools.partial(group_attention, in_prompt=in_prompt, in_response=in_response, backend=backend)
    return _model(config, params).decoder.forward(embeddings, positions, attend, remat)


def output_matrix(config: ModelConfig, params: Params) -> Float[Array, "V D"]:
    """Whose products with hidden states are the logits."""
    return _model(config, params).decoder.output_matrix


def compute_logits(config: ModelConfig, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """float32 logits of hidden states."""
    return _model(config, params).decoder.logits(hidden)


def prefill(
    config: ModelConfig,
    params: Params,
    prompts: PromptBatch,
    embeddings: Float[Array, "N L D"],
    shards: int,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "N V"], KeyValues]:
    """Logits of the first response token of each prompt, and its keys and values. Each prompt is run once.

    Args:
        config: the model's shapes.
        params: `serving_params`.
        prompts: N prompts, those of each shard in a run.
        embeddings: of the prompts, as `embed_prompts` gives them.
        shards: D, which divides N.
        prefix: of all prompts, where `prompts` are the rest of them.

    Returns:
        The logits, and the cache [D, N / D, kv_heads, L, H] for each layer.
    """
    decoder = _model(config, params).decoder
    hidden, kept = decoder.prefill(embeddings, prompts.positions, prompts.lengths, prefix)
    last = jnp.maximum(prompts.lengths - 1, 0)[:, None, None]
    logits = decoder.logits(jnp.take_along_axis(hidden, last, axis=1)[:, 0])

    def entries(x):  # [N, L, kv_heads, H]
        return jnp.swapaxes(x.reshape(shards, -1, *x.shape[1:]), 2, 3)

    return logits, KeyValues(*(tuple(entries(x) for x in layers) for layers in zip(*kept)))


def response_angles(config: ModelConfig, positions: Int[AnyArray, "*B"]) -> Angles:
    """Rotary angles [*B, half] of tokens of responses: M-RoPE positions that are the same on all axes."""
    return text_angles(positions, config.head_dim, config.rope_theta)


def decode_step(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "shards B"],
    angles: Angles,
    prompts: KeyValues,
    pages: KeyValues,
    recent: KeyValues,
    step: Int[Array, ""],
    tables: Tables,
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "shards B V"], KeyValues]:
    """Feeds a token of each sequence and gives the logits of the next one.

    Args:
        config: the model's shapes.
        params: `serving_params`.
        tokens: the tokens to feed.
        angles: of their positions, as `response_angles` gives them.
        prompts: cache of the prompts.
        pages: cache of full pages.
        recent: cache of what was fed since, shards joined.
        step: place of these tokens among the recent ones.
        tables: whose prompts and pages are whose.
        prefix: of all prompts, where `prompts` are the rest of them.

    Returns:
        The logits, and the recent cache with these tokens.
    """
    decoder = _model(config, params).decoder
    embeddings = decoder.embed_tokens(tokens)
    hidden, recent = decoder.decode_step(embeddings, angles, prompts, pages, recent, step, tables, prefix)
    return decoder.logits(hidden), recent


def prefill_prefix(config: ModelConfig, params: Params, tokens: Int[Array, " P"], dtype: DTypeLike) -> Prefix:
    """Keys and values, in `dtype`, of the text that prompts begin with; `params` are `serving_params`."""
    decoder = _model(config, params).decoder
    positions = jnp.broadcast_to(jnp.arange(tokens.size)[None, None], (1, 3, tokens.size))
    lengths = jnp.full(1, tokens.size, jnp.int32)
    _, kept = decoder.prefill(decoder.embed_tokens(tokens[None]), positions, lengths)
    return Prefix.of(kept, dtype)


def extend(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "N S"],
    positions: Int[Array, "N S"],
    rows: KeyValues,
    start: Int[Array, ""],
    seen: Bool[Array, "N S L"],
    prefix: Prefix | None = None,
) -> tuple[Float[Array, "N S D"], KeyValues]:
    """Feeds a block of tokens of each row at once.

    Args:
        config: the model's shapes.
        params: `serving_params`.
        tokens: the tokens to feed.
        positions: their M-RoPE positions, the same on all axes.
        rows: cache of what each row has fed so far, [N, 1, kv_heads, L, H] for each layer.
        start: where in it these tokens go.
        seen: which tokens of the cache each of these may attend to.
        prefix: that all rows begin with, before what is in the cache.

    Returns:
        Hidden states after the final norm, and the cache with these tokens.
    """
    decoder = _model(config, params).decoder
    angles = response_angles(config, positions)
    return decoder.extend(decoder.embed_tokens(tokens), angles, rows, start, seen, prefix)
