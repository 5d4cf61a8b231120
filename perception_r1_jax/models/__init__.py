"""Qwen2.5-VL, Qwen2, Mistral and Llama in Flax NNX.

Outside of this folder only these pure functions are seen, never a module.
"""

from perception_r1_jax.models.attention import BACKENDS, Segments, check_backend, packed_segments
from perception_r1_jax.models.blocks import map_blocks
from perception_r1_jax.models.cache import KeyValues, token_bytes
from perception_r1_jax.models.cached_attention import Tables
from perception_r1_jax.models.config import ModelConfig, VisionConfig, load_config
from perception_r1_jax.models.layers import REMAT_POLICIES
from perception_r1_jax.models.lora import (
    ADAPTERS,
    Adapters,
    LoraConfig,
    attach_adapters,
    base_params,
    init_adapters,
    merge_adapters,
    narrow_matrices,
)
from perception_r1_jax.models.prefix import Prefix
from perception_r1_jax.models.quantized import Int8, contract_rows, quantize_weight
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
    extend,
    forward,
    forward_groups,
    init_params,
    logical_axes,
    output_matrix,
    prefill,
    prefill_prefix,
    quantized_params,
    response_angles,
    serving_params,
    summed_axes,
)

__all__ = [
    "ADAPTERS",
    "BACKENDS",
    "REMAT_POLICIES",
    "Adapters",
    "Int8",
    "KeyValues",
    "LoraConfig",
    "ModelConfig",
    "Params",
    "Prefix",
    "Segments",
    "Tables",
    "VisionConfig",
    "abstract_params",
    "attach_adapters",
    "base_params",
    "cast_params",
    "check_backend",
    "compute_logits",
    "contract_rows",
    "count_params",
    "decode_step",
    "embed_prompts",
    "embed_tokens",
    "encode_images",
    "extend",
    "forward",
    "forward_groups",
    "init_adapters",
    "init_params",
    "load_config",
    "logical_axes",
    "map_blocks",
    "merge_adapters",
    "narrow_matrices",
    "output_matrix",
    "packed_segments",
    "prefill",
    "prefill_prefix",
    "quantize_weight",
    "quantized_params",
    "response_angles",
    "serving_params",
    "summed_axes",
    "token_bytes",
]
