"""Small random checkpoints in Hugging Face layout, made without torch.

With the default initialisation (0.02) positions hardly matter and biases are 0, so that a model with parts
missing would still agree with the true one. Here matrices are about six times as large, and biases and norms
are random.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perception_r1_jax.assets import SMALL_TOKENIZER
from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json, write_json
from perception_r1_jax.models import ModelConfig, load_config
from perception_r1_jax.processing.tokenizer import PIECES_FILE, load_tokenizer
from perception_r1_jax.weights.names import HfTensor, hf_tensors, nested_name
from perception_r1_jax.weights.safetensors_io import write_shards
from perception_r1_jax.weights.side_files import (
    CONFIG_FILE,
    GENERATION_FILE,
    PREPROCESSOR_FILE,
    copy_side_files,
)

INITIALIZER_RANGE = 0.02
VECTOR_SPREAD = 0.2
VOCAB_MULTIPLE = 64

QWEN_ENDS, PIECE_ENDS = ("<|endoftext|>", "<|im_end|>"), ("<s>", "</s>")
"""What begins and ends a text, in Qwen's tokenizers and in SentencePiece's."""

VISION_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
}

TEXT_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": INITIALIZER_RANGE,
    "intermediate_size": 160,
    "max_position_embeddings": 32768,
    "max_window_layers": 3,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
}

_QWEN_FIELDS = ("max_window_layers", "use_sliding_window")
LLAMA_CONFIG = {name: value for name, value in TEXT_CONFIG.items() if name not in (*_QWEN_FIELDS, "sliding_window")} | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 10000.0,
}
MISTRAL_CONFIG = LLAMA_CONFIG | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "sliding_window": None,
    "rope_theta": 1000000.0,
}

VL_CONFIG = TEXT_CONFIG | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vision_config": {
        "depth": 4,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_heads": 2,
        "in_chans": 3,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
}
FAMILIES = {"qwen2": TEXT_CONFIG, "qwen2_5_vl": VL_CONFIG, "mistral": MISTRAL_CONFIG, "llama": LLAMA_CONFIG}

PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def write_random_checkpoint(
    out: str | Path,
    family: str = "qwen2_5_vl",
    config_overrides: Mapping[str, Any] | None = None,
    tokenizer_dir: str | Path | None = None,
    preprocessor_overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    scale: float = 6.0,
    spread: float = VECTOR_SPREAD,
    dtype: str = "float32",
    nested: bool = False,
) -> Path:
    """Writes a random model directory: config, two or more shards with index, tokenizer and other side files.

    Args:
        out: the directory, made where it is not there.
        family: one of `FAMILIES`.
        config_overrides: fields of `config.json` in the published layout that replace the small defaults;
            those under "vision_config" one by one.
        tokenizer_dir: where tokenizer and side files come from; the package's small tokenizer by default. Token
            ids and vocabulary size follow it.
        preprocessor_overrides: fields of `preprocessor_config.json` that replace those.
        seed: of all weights; each tensor's values depend on the seed and its name alone.
        scale: standard deviation of the matrices over the default 0.02.
        spread: standard deviation of biases, about 0, and norm scales, about 1.
        dtype: "float32", "float16" or "bfloat16".
        nested: write config and names as transformers 5 has them, instead of the published layout.

    Raises:
        FileNotFoundError: no tokenizer there.
        UserError: a tokenizer that lacks one of the model's tokens, or an override that makes no model.
    """
    out, source = Path(out), Path(tokenizer_dir or SMALL_TOKENIZER)
    config = _make_config(family, config_overrides or {}, _token_fields(family, source), dtype)
    tensors = hf_tensors(load_config(config))
    out.mkdir(parents=True, exist_ok=True)
    _write_side_files(source, out, config, preprocessor_overrides or {})
    write_json(out / CONFIG_FILE, nested_config(config) if nested else config)
    rename = nested_name if nested and family == "qwen2_5_vl" else str
    sizes = {rename(name): int(np.prod(t.shape)) * np.dtype(dtype).itemsize for name, t in tensors.items()}
    draws = ((rename(name), _draw(tensor, seed, scale, spread).astype(dtype)) for name, tensor in tensors.items())
    write_shards(out, sizes, draws, max_shard_bytes=sum(sizes.values()) // 2)
    return out


def random_model_config(family: str, tokenizer_dir: str | Path | None = None) -> ModelConfig:
    """Shapes of the model that `write_random_checkpoint` writes without overrides; args and errors as of it."""
    source = Path(tokenizer_dir or SMALL_TOKENIZER)
    return load_config(_make_config(family, {}, _token_fields(family, source), "float32"))


def _draw(tensor: HfTensor, seed: int, scale: float, spread: float) -> np.ndarray:
    noise = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())]).standard_normal(tensor.shape, np.float32)
    if tensor.row.path.endswith("/scale"):
        return 1 + spread * noise
    return noise * (spread if tensor.row.path.endswith("/bias") else scale * INITIALIZER_RANGE)


def _token_fields(family: str, tokenizer_dir: Path) -> dict[str, int]:
    tokenizer = load_tokenizer(tokenizer_dir, vocab_size=2**31)
    pieces = (tokenizer_dir / PIECES_FILE).is_file()
    tokens = dict(zip(("bos_token_id", "eos_token_id"), PIECE_ENDS if pieces else QWEN_ENDS))
    tokens |= VISION_TOKENS if family == "qwen2_5_vl" else {}
    vocabulary = tokenizer.added_tokens_encoder
    missing = [token for token in tokens.values() if token not in vocabulary]
    if missing:
        raise UserError(
            f"the tokenizer in {tokenizer_dir} has no {', '.join(missing)}. Give one of the model's family."
        )
    padded = -(-len(tokenizer) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    return {"vocab_size": padded} | {field: vocabulary[token] for field, token in tokens.items()}


def _make_config(
    family: str, overrides: Mapping[str, Any], token_fields: Mapping[str, int], dtype: str
) -> dict[str, Any]:
    if family not in FAMILIES:
        raise UserError(f"family {family!r} is not known; choose one of {', '.join(FAMILIES)}.")
    config = {**FAMILIES[family], **token_fields, **overrides, "torch_dtype": dtype}
    if family == "qwen2_5_vl":
        vision = {**VL_CONFIG["vision_config"], "out_hidden_size": config["hidden_size"]}
        config["vision_config"] = vision | overrides.get("vision_config", {})
    return config


def _write_side_files(
    source: Path, out: Path, config: Mapping[str, Any], preprocessor_overrides: Mapping[str, Any]
) -> None:
    copy_side_files(source, out)
    if not (out / GENERATION_FILE).exists():
        stops = [config["eos_token_id"], config["bos_token_id"]]
        fields = {"bos_token_id": stops[1], "pad_token_id": stops[1], "eos_token_id": stops, "do_sample": False}
        write_json(out / GENERATION_FILE, fields)
    if "vision_config" not in config:
        (out / PREPROCESSOR_FILE).unlink(missing_ok=True)
    elif preprocessor_overrides or not (out / PREPROCESSOR_FILE).exists():
        preprocessor = read_json(out / PREPROCESSOR_FILE) or PREPROCESSOR
        write_json(out / PREPROCESSOR_FILE, {**preprocessor, **preprocessor_overrides})


def nested_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` as transformers 5 lays it out, from the published layout."""
    top = ("architectures", "model_type", "tie_word_embeddings", "vision_config", *VISION_TOKENS)
    outer = {name: config[name] for name in top if name in config} | {"dtype": config["torch_dtype"]}
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"], **config.get("rope_scaling", {})}
    moved = {*outer, "rope_theta", "rope_scaling", "torch_dtype"}
    text = {name: value for name, value in config.items() if name not in moved} | {"rope_parameters": rope}
    return outer | ({"text_config": text} if "vision_config" in config else text)
