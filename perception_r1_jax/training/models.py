"""The models of a run, from whatever the config names to sharded parameters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from perception_r1_jax.errors import UserError
from perception_r1_jax.json_files import read_json, write_json
from perception_r1_jax.models import load_config
from perception_r1_jax.weights import convert_huggingface, locate_model
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from perception_r1_jax.weights.side_files import CONFIG_FILE, SIDE_FILES, TOKENIZER_FILES, copy_whole

RANDOM = "random"
RANDOM_SCALE = 12.0
"""Matrices large enough that a random judge's verdicts differ from response to response."""


def prepare_model(field: str, path: str, tokenizer: str, family: str, folder: Path, seed: int, *, begun: bool) -> Path:
    """The directory to load a model from.

    Args:
        field: of the config that says `path`, for messages: "model.path".
        path: a model directory of any kind, which is returned as it is, or "random": then a small random
            Hugging Face checkpoint is made at `folder`/hf and converted to `folder`/converted, once.
        tokenizer: directory of the tokenizer for a random model; "" is the package's small one.
        family: "qwen2_5_vl" or "qwen2", for a random model.
        folder: where a random model is made.
        seed: of its weights.
        begun: whether there is a checkpoint of the run. It keeps the random model that it began with; else one of
            another tokenizer, family or seed is made anew.

    Raises:
        UserError: no model at `path`, or one of another architecture.
    """
    if path != RANDOM:
        return _check_model(field, path)
    source, converted, made_from = folder / "hf", folder / "converted", folder / "made_from.json"
    asked = {"tokenizer": tokenizer, "family": family, "seed": seed}
    if not (converted / "params").is_dir() or (not begun and read_json(made_from) != asked):
        shutil.rmtree(folder, ignore_errors=True)
        write_random_checkpoint(source, family, tokenizer_dir=tokenizer or None, seed=seed, scale=RANDOM_SCALE)
        convert_huggingface(source, converted)
        write_json(made_from, asked)
    return converted


def _check_model(field: str, path: str) -> Path:
    try:
        load_config(locate_model(path).model_dir)
    except ValueError as error:
        raise UserError(f"config.{field} = {path!r}: {error}") from error
    return Path(path)


def keep_side_files(model: Path, tokenizer: str, out: Path) -> None:
    """Copies config, tokenizer and the like into a run's `model/`, so that its checkpoints can be used alone.

    A folder that has them already is left as it is.

    Args:
        model: directory of the model.
        tokenizer: directory that the tokenizer's files come from instead, where it is not "".
        out: the folder.

    Raises:
        UserError: the folder holds those of another model; the message names the first file that differs.
    """
    model_dir = locate_model(model).model_dir
    if model_dir == out:
        return
    folders = dict.fromkeys((CONFIG_FILE, *SIDE_FILES), model_dir)
    if tokenizer:
        folders |= dict.fromkeys(TOKENIZER_FILES, Path(tokenizer))
    sources = {name: folder / name for name, folder in folders.items()}
    if (out / CONFIG_FILE).is_file():
        _check_same(sources, out)
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, source in reversed(sources.items()):  # the config comes last: it says that all are there
        if source.is_file():
            copy_whole(source, out / name)


def _check_same(sources: Mapping[str, Path], out: Path) -> None:
    """Raises `UserError` where a file of a run differs from the one that it would be copied from."""
    for name, source in sources.items():
        then, now = (path.read_bytes() if path.is_file() else None for path in (out / name, source))
        if then != now:
            raise UserError(
                f"{out / name} is not {source}: the run in this workdir has another model or tokenizer. Give that one, "
                "or choose another workdir."
            )


def tokenizer_in_place(section: ConfigDict) -> str:
    """The tokenizer that takes the place of the model's, "" for none; a random model was made with its own."""
    return "" if section.path == RANDOM else section.tokenizer
