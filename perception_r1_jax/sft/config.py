"""The configuration of supervised training: every field with its default, and the checks before any device work.

Model, optimizer, mesh and checkpoint have the fields of `perception_r1_jax.config.default_config`.
"""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from perception_r1_jax.config import check_divides, check_fields, check_path, default_config
from perception_r1_jax.data.conversations import WORLD
from perception_r1_jax.errors import UserError

LEAST = {
    "sft.row_tokens": 2,
    "sft.row_windows": 0,
    "sft.rows_per_step": 1,
    "sft.waiting": 1,
    "sft.log_prob_chunk": 1,
    "sft.validate_every": 1,
    "sft.validate_conversations": 0,
    "sft.log_every": 1,
}
"""The least value of fields that a run of GRPO does not have."""


def sft_config() -> ConfigDict:
    """All fields of a supervised run."""
    shared = default_config()
    config = ConfigDict()
    config.seed = 1  # of the order of the data, and of a random model
    config.steps = 1000  # optimizer steps

    config.data = ConfigDict()  # the conversations
    # A folder with {split}.jsonl or {split}*.parquet, one such file, or geometry_world:policy and others (docs/sft.md).
    config.data.path = ""
    config.data.split = "train"  # which files of a folder; a single file is one split
    config.data.validation_split = "val"  # likewise, for the loss on data that is not trained on
    config.data.shuffle = True  # a new order each epoch, by seed
    config.data.prefetch = 64  # conversations prepared ahead of the step, pictures decoded; 0: each when it is needed

    config.model = shared.model  # the model to train, a Qwen2.5-VL or a Qwen2.5
    config.lora = shared.lora  # adapters trained in its place

    config.sft = ConfigDict()  # how conversations are packed, and the loss
    config.sft.row_tokens = 4096  # tokens of a row; a longer conversation is dropped and named
    config.sft.row_windows = 64  # 112-pixel windows of a row; 0 for a text-only model
    config.sft.rows_per_step = 32  # rows of a batch, over all devices
    config.sft.micro_batch_rows = 8  # rows that go through the model at a time, over all devices
    config.sft.waiting = 16  # a batch is full when so many conversations found no room in it
    config.sft.log_prob_chunk = 256  # positions of each row whose logits exist at a time
    config.sft.validate_every = 100  # steps between two validations; one comes after the last step in any case
    config.sft.validate_conversations = 512  # from the front of the validation split; 0 validates nothing
    config.sft.log_every = 10  # steps between two printed lines; metrics.jsonl has a line for each step

    config.optimizer = shared.optimizer  # AdamW or Muon
    config.optimizer.learning_rate = 1e-5  # after warm-up
    config.optimizer.schedule = "cosine"  # down to a tenth at the last step; or constant

    config.mesh = shared.mesh  # sizes multiply to the number of devices
    config.checkpoint = shared.checkpoint  # what is kept on disk
    config.checkpoint.every = 100  # steps between two checkpoints; the last step is always saved
    config.checkpoint.keep_best = 0  # so many with the lowest validation loss, of those saved at a validation
    return config.lock()


def resolve(config: ConfigDict) -> ConfigDict:
    """The config as it runs: a copy, checked.

    Raises:
        UserError: a field with an impossible value, or batch sizes that do not divide; it says what to set.
        FileNotFoundError: a path that is not given or does not exist.
    """
    config = config.copy_and_resolve_references()
    check_fields(config, LEAST)
    check_divides("sft.micro_batch_rows", config.sft.micro_batch_rows, config.sft.rows_per_step)
    check_path(config, "model.path", ("random",))
    check_path(config, "model.tokenizer", ("",))
    check_path(config, "data.path", WORLD)
    _check_validation(config)
    return config


def _check_validation(config: ConfigDict) -> None:
    one_split = config.data.validation_split == config.data.split or Path(config.data.path).is_file()
    if config.sft.validate_conversations and one_split:
        raise UserError(
            f"config.data.validation_split = {config.data.validation_split!r}: the run would validate on what it "
            "trains on. Give a folder with another split, or set config.sft.validate_conversations to 0."
        )


def arithmetic(config: ConfigDict, *, parameters: int, mesh: dict[str, int]) -> str:
    """The block that a run prints at its start: how the batch sizes multiply out."""
    rows, sft = config.sft.rows_per_step, config.sft
    lines = [
        ("a step", f"{rows} rows x {sft.row_tokens:,} tokens = {rows * sft.row_tokens:,} tokens, one optimizer update"),
        ("micro-batches", f"{rows // sft.micro_batch_rows} of {sft.micro_batch_rows} rows"),
        ("parameters", f"{parameters:,}"),
        ("mesh", " x ".join(f"{name} {size}" for name, size in mesh.items())),
    ]
    return "\n".join(f"  {name:<14} {text}" for name, text in lines)
