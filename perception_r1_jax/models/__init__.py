"""Qwen2.5-VL and Qwen2 in Flax NNX. Outside of this folder only these pure functions are seen, never a module."""

from perception_r1_jax.models.attention import causal_mask, segment_mask
from perception_r1_jax.models.blocks import map_blocks
from perception_r1_jax.models.cache import KeyValues, token_bytes
from perception_r1_jax.models.cached_attention import Tables
from perception_r1_jax.models.config import ModelConfig, VisionConfig, load_config
from perception_r1_jax.models.layers import REMAT_POLICIES
from perception_r1_jax.models.qwen2_5_vl import (
    Params,
    abstract_params,
    cast_params,
    compute_logits,
    count_params,
    decode_step,
    embed_prompts,
    embed_tokens,
    encode_images,
    forward,
    forward_groups,
    init_params,
    logical_axes,
    prefill,
    serving_params,
)

__all__ = [
    "REMAT_POLICIES",
    "KeyValues",
    "ModelConfig",
    "Params",
    "Tables",
    "VisionConfig",
    "abstract_params",
    "cast_params",
    "causal_mask",
    "compute_logits",
    "count_params",
    "decode_step",
    "embed_prompts",
    "embed_tokens",
    "encode_images",
    "forward",
    "forward_groups",
    "init_params",
    "load_config",
    "logical_axes",
    "map_blocks",
    "prefill",
    "segment_mask",
    "serving_params",
    "token_bytes",
]
