"""Model shapes, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception_r1_jax.errors import UserError
from perception_r1_jax.records import MERGE_UNIT, WINDOW_PATCHES

FAMILIES = ("qwen2_5_vl", "qwen2", "mistral", "llama")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower of Qwen2.5-VL (arXiv 2502.13923, section 2.1)."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    full_attention_layers: tuple[int, ...]
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    @property
    def patch_dim(self) -> int:
        """Numbers in a flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Qwen2, Mistral or Llama decoder, with Qwen2.5-VL's vision tower where `vision` is set."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    tie_embeddings: bool
    attention_bias: bool = True
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    mrope_section: tuple[int, int, int] | None = None
    vision: VisionConfig | None = None
    image_token_id: int | None = None
    video_token_id: int | None = None
    vision_start_token_id: int | None = None
    vision_end_token_id: int | None = None
    vision_pad_token_id: int | None = None


def load_config(source: str | Path | Mapping[str, Any]) -> ModelConfig:
    """Reads a `config.json`: the directory that holds it, or its content.

    Both layouts are read: flat, as the published checkpoints have it, and nested under `text_config`, as
    transformers 5 writes it.

    Raises:
        FileNotFoundError: no `config.json` in the directory.
        UserError: another architecture, a missing field, or a field whose value this model does not cover.
    """
    if isinstance(source, Mapping):
        return _parse(source, "config")
    path = Path(source) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Give a Hugging Face model directory or a converted checkpoint."
        )
    try:
        content = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    return _parse(content, str(path))


def _parse(raw: Any, name: str) -> ModelConfig:
    if not isinstance(raw, Mapping):
        raise UserError(f"{name}: a {type(raw).__name__}, not a JSON object.")
    family = raw.get("model_type")
    if family not in FAMILIES:
        raise UserError(f"{name}: model_type {family!r} is not supported; this project runs {', '.join(FAMILIES)}.")
    text = {**raw, **raw.get("text_config", {})}
    try:
        config = _model_config(family, raw, text, name)
    except KeyError as error:
        raise UserError(f"{name}: field {error.args[0]!r} is missing.") from error
    _check_shapes(name, config)
    return config


def _model_config(family: str, raw: Mapping[str, Any], text: Mapping[str, Any], name: str) -> ModelConfig:
    _require(name, text, "hidden_act", "silu")
    _require(name, text, "use_sliding_window", False)
    is_qwen = family.startswith("qwen2")
    if not is_qwen:
        _check_plain(name, text)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    _check_rope(name, rope)
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    is_vl = family == "qwen2_5_vl"
    return ModelConfig(
        model_type=family,
        vocab_size=text["vocab_size"],
        hidden_size=hidden,
        intermediate_size=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text.get("head_dim") or hidden // heads,
        # transformers before 5 left the outer field of a nested config at its default
        tie_embeddings=bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        attention_bias=is_qwen,
        rope_theta=_rope_theta(family, text, rope),
        rms_norm_eps=float(text["rms_norm_eps"]),
        mrope_section=tuple(rope["mrope_section"]) if is_vl else None,
        vision=_vision_config(raw["vision_config"], name) if is_vl else None,
        image_token_id=raw["image_token_id"] if is_vl else None,
        video_token_id=raw["video_token_id"] if is_vl else None,
        vision_start_token_id=text["vision_start_token_id"] if is_vl else None,
        vision_end_token_id=text["vision_end_token_id"] if is_vl else None,
        vision_pad_token_id=text.get("vision_token_id") if is_vl else None,
    )


def _rope_theta(family: str, text: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    default = {"rope_theta": 10_000.0} if family == "llama" else {}  # published without the field at first
    return float({**default, **rope, **text}["rope_theta"])


def _vision_config(raw: Mapping[str, Any], name: str) -> VisionConfig:
    _require(name, raw, "hidden_act", "silu")
    vision = VisionConfig(
        depth=raw["depth"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_heads=raw["num_heads"],
        out_hidden_size=raw["out_hidden_size"],
        full_attention_layers=tuple(raw["fullatt_block_indexes"]),
        in_channels=raw.get("in_chans", raw.get("in_channels", 3)),
        patch_size=raw["patch_size"],
        temporal_patch_size=raw["temporal_patch_size"],
        spatial_merge_size=raw["spatial_merge_size"],
        window_size=raw["window_size"],
    )
    if vision.spatial_merge_size**2 != MERGE_UNIT or (vision.window_size // vision.patch_size) ** 2 != WINDOW_PATCHES:
        raise UserError(
            f"{name}: vision windows of {vision.window_size} pixels, patches of {vision.patch_size} and merge size "
            f"{vision.spatial_merge_size} are not covered; Qwen2.5-VL has 112, 14 and 2."
        )
    return vision


def _check_shapes(name: str, config: ModelConfig) -> None:
    """Sizes that must agree; apart from these any will do."""
    if config.num_heads % config.num_kv_heads:
        raise UserError(
            f"{name}: num_attention_heads {config.num_heads} is no multiple of "
            f"num_key_value_heads {config.num_kv_heads}."
        )
    if config.vision is None:
        return
    if sum(config.mrope_section) != config.head_dim // 2:
        raise UserError(
            f"{name}: mrope_section {list(config.mrope_section)} must sum to {config.head_dim // 2}, half a head."
        )
    if config.vision.out_hidden_size != config.hidden_size:
        raise UserError(
            f"{name}: out_hidden_size {config.vision.out_hidden_size} of the vision tower is not "
            f"hidden_size {config.hidden_size}."
        )


def _check_rope(name: str, rope: Mapping[str, Any]) -> None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise UserError(f"{name}: rotary scaling {kind!r} is not covered; only 'default' and Qwen2.5-VL's 'mrope' are.")


def _check_plain(name: str, text: Mapping[str, Any]) -> None:
    """That a Mistral or Llama has neither biases nor a window. (Qwen2 names a size for the window it does not use.)"""
    _require(name, text, "attention_bias", False)
    _require(name, text, "mlp_bias", False)
    if (window := text.get("sliding_window")) is not None:
        raise UserError(
            f"{name}: sliding_window {window} is not covered. Mistral-7B-Instruct has none from v0.2 on. Where prompts "
            f"and answers stay within {window} tokens together the window has no effect: set it to null."
        )


def _require(name: str, raw: Mapping[str, Any], field: str, expected: Any) -> None:
    if raw.get(field, expected) != expected:
        raise UserError(f"{name}: {field} is {raw[field]!r}; only {expected!r} is covered.")
