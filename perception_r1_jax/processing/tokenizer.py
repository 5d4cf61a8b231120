"""The tokenizer of a model directory, and which of its ids stop, pad and mark pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers

from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json
from perception_r1_jax.models import ModelConfig
from perception_r1_jax.processing.pieces import PieceTokenizer, read_pieces

VISION_TOKENS = {
    "<|image_pad|>": "image_token_id",
    "<|video_pad|>": "video_token_id",
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    "<|vision_pad|>": "vision_pad_token_id",
}
"""Qwen2.5-VL's tokens around pictures, which a policy must never sample, and where `ModelConfig` has their ids."""


PIECES_FILE = "tokenizer.model"
"""The file of a SentencePiece tokenizer; where it is, it says what the tokenizer is."""


def load_tokenizer(directory: Path, vocab_size: int) -> Any:
    """The tokenizer of a directory: that of `PIECES_FILE`, or else the Hugging Face fast one (no remote code).

    Raises:
        FileNotFoundError: names the files that are missing.
        UserError: it cannot be read, has no padding token, or has more ids than the model's `vocab_size`.
    """
    pieces = (directory / PIECES_FILE).is_file()
    tokenizer = _load_pieces(directory) if pieces else _load_fast(directory)
    if len(tokenizer) > vocab_size:
        raise UserError(f"the tokenizer of {directory} has {len(tokenizer)} ids, the model {vocab_size}: give its own.")
    return tokenizer


def _load_pieces(directory: Path) -> PieceTokenizer:
    """What `PIECES_FILE` says, with the tokens that the other files add to it."""
    config = read_json(directory / "tokenizer_config.json")
    listed = config.get("added_tokens_decoder", {})
    added = {entry["content"]: int(index) for index, entry in listed.items()}
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    given = {name: config[name] for name in names if config.get(name)}
    named = {name: token if isinstance(token, str) else token["content"] for name, token in given.items()}
    return read_pieces(directory / PIECES_FILE, read_json(directory / "added_tokens.json") | added, named)


def _load_fast(directory: Path) -> Any:
    if not (directory / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{directory} has no tokenizer_config.json: give the directory of the tokenizer.")
    whole = (directory / "tokenizer.json").is_file()
    if not whole:
        missing = [name for name in ("vocab.json", "merges.txt") if not (directory / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{directory} has neither tokenizer.json nor {' and '.join(missing)}.")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # By the model's type `AutoTokenizer` may choose a class that replaces what tokenizer.json says by rules of its own.
    reader = PreTrainedTokenizerFast if whole else AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # A damaged file shows as anything from a JSON to a Rust error.
        raise UserError(f"the tokenizer of {directory} cannot be read: {error}") from error
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {directory} has no pad_token.")
    return tokenizer


def plain_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """The same vocabulary and splitting rules without any added token: what it encodes is text, never a control token.

    `split_special_tokens=True` would not do: Qwen's `<tool_call>` and `<|file_sep|>` are added but not special.
    """
    if isinstance(tokenizer, PieceTokenizer):
        return tokenizer.encode
    backend = tokenizer.backend_tokenizer
    plain = tokenizers.Tokenizer(backend.model)
    plain.normalizer, plain.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    return lambda text: plain.encode(text, add_special_tokens=False).ids


def leading_space(tokenizer: Any) -> str:
    """What the tokenizer itself puts in front of every text that it encodes: a space, or nothing."""
    return tokenizer.leading_space if isinstance(tokenizer, PieceTokenizer) else ""


def read_stop_ids(directory: Path, tokenizer: Any) -> tuple[int, ...]:
    """End ids of `generation_config.json`, else of `config.json` in either layout, else the tokenizer's."""
    config = read_json(directory / "config.json")
    for source in (read_json(directory / "generation_config.json"), config, config.get("text_config", {})):
        ids = source.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return (tokenizer.eos_token_id,)


def vision_token_ids(tokenizer: Any, config: ModelConfig) -> tuple[int, ...]:
    """Ids of `VISION_TOKENS`, checked against those that the model's config names.

    Raises:
        UserError: the tokenizer lacks one of them or numbers them otherwise than the model.
    """
    known = tokenizer.added_tokens_encoder
    missing = [token for token in VISION_TOKENS if token not in known]
    if missing:
        raise UserError(f"tokenizer {tokenizer.name_or_path} lacks {', '.join(missing)}: give the model's own.")
    for token, field in VISION_TOKENS.items():
        if getattr(config, field) not in (None, known[token]):
            raise UserError(
                f"tokenizer {tokenizer.name_or_path} has {token} at {known[token]}, the model's config at "
                f"{getattr(config, field)}: give the model's own."
            )
    return tuple(known[token] for token in VISION_TOKENS)
