"""The shapes of a run's models, whether they are there yet or not."""

from __future__ import annotations

from pathlib import Path

from perception_r1_jax.errors import UserError
from perception_r1_jax.models import ModelConfig, load_config
from perception_r1_jax.models.published import PUBLISHED
from perception_r1_jax.training.models import RANDOM
from perception_r1_jax.weights import locate_model
from perception_r1_jax.weights.random_checkpoint import random_model_config


def model_shapes(field: str, path: str, tokenizer: str, family: str) -> ModelConfig:
    """Shapes of the model that the config names.

    Args:
        field: of the config that says `path`, for messages: "model.path".
        path: a model directory, of which only `config.json` is read; "random"; or a path that does not exist and ends
            in the name of a published model.
        tokenizer: of a random model, as of `prepare_model`.
        family: of a random model.

    Raises:
        UserError: neither a model nor a published name.
    """
    if path == RANDOM:
        return random_model_config(family, tokenizer or None)
    folder = Path(path)
    if folder.is_dir():
        return load_config(folder if (folder / "config.json").is_file() else locate_model(folder).model_dir)
    if folder.name in PUBLISHED:
        return PUBLISHED[folder.name]
    raise UserError(
        f"config.{field} = {path!r} is neither a folder nor a published name. Set it to a folder with a config.json, "
        f"or to one of {', '.join(PUBLISHED)}."
    )
