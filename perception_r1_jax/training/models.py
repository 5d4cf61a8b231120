"""The models of a run, from whatever the config names to sharded parameters."""

from __future__ import annotations

import shutil
from pathlib import Path

from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import load_config
from perception_r1_jax.weights import convert_huggingface, locate_model
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.side_files import CONFIG_FILE, MODEL_FILES, SIDE_FILES, TOKENIZER_FILES, copy_side_files

RANDOM = "random"
RANDOM_SCALE = 12.0
"""Matrices large enough that a random judge's verdicts differ from response to response."""


def prepare_model(field: str, path: str, tokenizer: str, family: str, folder: Path, seed: int) -> Path:
    """The directory to load a model from.

    Args:
        field: of the config that says `path`, for messages: "model.path".
        path: a model directory of any kind, which is returned as it is, or "random": then a small random
            Hugging Face checkpoint is made at `folder`/hf and converted to `folder`/converted, once.
        tokenizer: directory of the tokenizer for a random model; "" is the package's small one.
        family: "qwen2_5_vl" or "qwen2", for a random model.
        folder: where a random model is made.
        seed: of its weights.

    Raises:
        UserError: no model at `path`, or one of another architecture.
    """
    if path != RANDOM:
        return _check_model(field, path)
    source, converted = folder / "hf", folder / "converted"
    if not (converted / "params").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        write_random_checkpoint(source, family, tokenizer_dir=tokenizer or None, seed=seed, scale=RANDOM_SCALE)
        convert_huggingface(source, converted)
    return converted


def _check_model(field: str, path: str) -> Path:
    try:
        load_config(locate_model(path).model_dir)
    except ValueError as error:
        raise UserError(f"config.{field} = {path!r}: {error}") from error
    return Path(path)


def keep_side_files(model: Path, tokenizer: str, out: Path) -> None:
    """Copies config, tokenizer and the like into a run's `model/`, so that its checkpoints can be used alone.

    Args:
        model: directory of the model.
        tokenizer: directory that the tokenizer's files come from instead, where it is not "".
        out: the folder.

    Raises:
        UserError: the folder holds another model's config.
    """
    model_dir = locate_model(model).model_dir
    if model_dir == out:
        return
    if (out / CONFIG_FILE).is_file() and load_config(out) != load_config(model_dir):
        raise UserError(f"{out} is of another model than {model_dir}. Choose another workdir, or remove this one.")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model_dir / CONFIG_FILE, out / CONFIG_FILE)
    copy_side_files(model_dir, out, MODEL_FILES if tokenizer else SIDE_FILES)
    if tokenizer:
        copy_side_files(Path(tokenizer), out, TOKENIZER_FILES)


def tokenizer_in_place(section: ConfigDict) -> str:
    """The tokenizer that takes the place of the model's, "" for none; a random model was made with its own."""
    return "" if section.path == RANDOM else section.tokenizer
