"""The tokenizer of a model directory, and which of its ids stop, pad and mark pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

VISION_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
"""Qwen2.5-VL's tokens around pictures; a policy must never sample one."""


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, empty where the file is absent. Raises `ValueError` naming one that is not JSON."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def load_tokenizer(directory: Path, vocab_size: int) -> Any:
    """The Hugging Face fast tokenizer of a directory: local files only, no remote code.

    Raises:
        FileNotFoundError: names the files that are missing.
        ValueError: it cannot be read, has no padding token, or has more ids than the model's `vocab_size`.
    """
    if not (directory / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{directory} has no tokenizer_config.json: give the directory of the tokenizer.")
    if not (directory / "tokenizer.json").is_file():
        missing = [name for name in ("vocab.json", "merges.txt") if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{directory} has neither tokenizer.json nor {' and '.join(missing)}.")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # A damaged file shows as anything from a JSON to a Rust error.
        raise ValueError(f"the tokenizer of {directory} cannot be read: {error}") from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer of {directory} has no pad_token.")
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer of {directory} has {len(tokenizer)} ids, the model {vocab_size}: give its own."
        )
    return tokenizer


def plain_encoder(tokenizer: Any) -> tokenizers.Tokenizer:
    """The same vocabulary and splitting rules without any added token: what it encodes is text, never a control token.

    `split_special_tokens=True` would not do: Qwen's `<tool_call>` and `<|file_sep|>` are added but not special.
    """
    backend = tokenizer.backend_tokenizer
    plain = tokenizers.Tokenizer(backend.model)
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    return plain


def read_stop_ids(directory: Path, tokenizer: Any) -> tuple[int, ...]:
    """End ids of `generation_config.json`, else of `config.json`, else the tokenizer's."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(directory / name).get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return (tokenizer.eos_token_id,)


def vision_token_ids(tokenizer: Any, image_token_id: int) -> tuple[int, ...]:
    """Ids of `VISION_TOKENS`, checked against the image token of the model's config.

    Raises:
        ValueError: the tokenizer lacks one of them or numbers them otherwise than the model.
    """
    known = tokenizer.added_tokens_encoder
    missing = [token for token in VISION_TOKENS if token not in known]
    if missing:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} lacks {', '.join(missing)}: give the model's own.")
    if known[VISION_TOKENS[0]] != image_token_id:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path} has {VISION_TOKENS[0]} at {known[VISION_TOKENS[0]]}, the model's "
            f"config has image_token_id {image_token_id}: give the model's own."
        )
    return tuple(known[token] for token in VISION_TOKENS)
