"""The published sizes of Qwen2.5-VL and Qwen2.5, so that a run can be planned before its models are downloaded."""

from __future__ import annotations

from perception_r1_jax.models.config import ModelConfig, VisionConfig

_HEAD_DIM = {"Qwen2.5-0.5B-Instruct": 64}  # 128 in all others
_VISION_MLP = {"Qwen2.5-VL-32B-Instruct": 3456, "Qwen2.5-VL-72B-Instruct": 3456}  # 3420 in the smaller ones

_SIZES = {
    # vocabulary, hidden, MLP, layers, heads, key heads, tied
    "Qwen2.5-VL-3B-Instruct": (151936, 2048, 11008, 36, 16, 2, True),
    "Qwen2.5-VL-7B-Instruct": (152064, 3584, 18944, 28, 28, 4, False),
    "Qwen2.5-VL-32B-Instruct": (152064, 5120, 27648, 64, 40, 8, False),
    "Qwen2.5-VL-72B-Instruct": (152064, 8192, 29568, 80, 64, 8, False),
    "Qwen2.5-0.5B-Instruct": (151936, 896, 4864, 24, 14, 2, True),
    "Qwen2.5-1.5B-Instruct": (151936, 1536, 8960, 28, 12, 2, True),
    "Qwen2.5-3B-Instruct": (151936, 2048, 11008, 36, 16, 2, True),
    "Qwen2.5-7B-Instruct": (152064, 3584, 18944, 28, 28, 4, False),
    "Qwen2.5-14B-Instruct": (152064, 5120, 13824, 48, 40, 8, False),
    "Qwen2.5-32B-Instruct": (152064, 5120, 27648, 64, 40, 8, False),
    "Qwen2.5-72B-Instruct": (152064, 8192, 29568, 80, 64, 8, False),
}


def _vision(name: str, hidden: int) -> VisionConfig:
    return VisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=_VISION_MLP.get(name, 3420),
        num_heads=16,
        out_hidden_size=hidden,
        full_attention_layers=(7, 15, 23, 31),
    )


def _model(name: str) -> ModelConfig:
    vocabulary, hidden, intermediate, layers, heads, kv_heads, tied = _SIZES[name]
    pictures = {
        "mrope_section": (16, 24, 24),
        "vision": _vision(name, hidden),
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_pad_token_id": 151654,
    }
    return ModelConfig(
        model_type="qwen2_5_vl" if "VL" in name else "qwen2",
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_HEAD_DIM.get(name, 128),
        tie_embeddings=tied,
        **(pictures if "VL" in name else {}),
    )


PUBLISHED = {name: _model(name) for name in _SIZES}
"""Shapes by the name that a model is published under."""
