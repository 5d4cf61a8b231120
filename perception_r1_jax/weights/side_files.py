"""What a model directory holds beside its weights, and the published layout of its config."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception_r1_jax.json_files import write_json

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
"""What transformers 5 writes instead of `PREPROCESSOR_FILE`."""

MODEL_FILES = (GENERATION_FILE, PREPROCESSOR_FILE, PROCESSOR_FILE)
TOKENIZER_FILES = (
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
SIDE_FILES = MODEL_FILES + TOKENIZER_FILES


def copy_side_files(source: Path, out: Path) -> None:
    """Copies those of the files that are there; `config.json` is its caller's, who knows the dtype."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


def copy_whole(source: Path, out: Path) -> None:
    """Copies a file so that it is there whole or not at all."""
    temporary = out.with_name(out.name + ".tmp")
    shutil.copyfile(source, temporary)
    os.replace(temporary, out)


def publish_preprocessor(directory: Path) -> None:
    """Turns a `processor_config.json` into the `preprocessor_config.json` of the published layout."""
    path = directory / PROCESSOR_FILE
    if not path.is_file():
        return
    content = dict(json.loads(path.read_text())["image_processor"])
    size = content.pop("size", None)
    if size is not None:
        content |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    write_json(directory / PREPROCESSOR_FILE, content)
    path.unlink()


def published_config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """A `config.json` in the published (flat, transformers 4) layout, from either layout.

    Args:
        config: the content, flat or nested.
        dtype: of the weights beside it, such as "bfloat16".
    """
    text = dict(config.get("text_config", {}))
    flat = {**text, **config, "torch_dtype": dtype}
    flat["tie_word_embeddings"] = any(part.get("tie_word_embeddings", False) for part in (text, config))
    for name in ("text_config", "dtype", "layer_types", "quantization_config"):
        flat.pop(name, None)
    rope = flat.pop("rope_parameters", None)
    if rope is not None:
        flat["rope_theta"] = rope["rope_theta"]
    if rope is not None and "mrope_section" in rope:
        flat["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    if "vision_config" in flat:
        flat["vision_config"] = _published_vision(flat["vision_config"])
    return flat


def _published_vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    channels = {"in_chans": vision["in_channels"]} if "in_channels" in vision else {}
    dropped = ("in_channels", "rope_parameters", "dtype", "model_type")
    return {name: value for name, value in vision.items() if name not in dropped} | channels
