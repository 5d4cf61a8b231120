"""From a config to everything that supervised training works with."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from perception_r1_jax.data import DataError, load_conversations
from perception_r1_jax.data.conversations import WORLD
from perception_r1_jax.models import Params, check_backend, count_params, load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Conversation, PackedBatch
from perception_r1_jax.sft.batches import PackedBatches, make_batches
from perception_r1_jax.sft.config import arithmetic, resolve
from perception_r1_jax.sft.step import Metrics, SftStep, make_sft_scores, make_sft_step
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training.checkpoints import Checkpoints, has_checkpoint
from perception_r1_jax.training.console import RunConsole
from perception_r1_jax.training.continuing import begin_or_continue
from perception_r1_jax.training.models import keep_side_files, prepare_model, tokenizer_in_place
from perception_r1_jax.training.run_record import hash_conversations, hash_model, make_record
from perception_r1_jax.training.state import TrainState

HASHED = 256
"""Conversations of an endless source that tell it from another."""


@dataclasses.dataclass
class SftRun:
    """A run about to start or to continue.

    Attributes:
        config, workdir, console: what the run was asked for, and where it writes.
        setup_seconds: what preparing took.
        batches: the data, at the position where the run goes on.
        validation: begins a pass over the validation set; None without one.
        mesh: for the model.
        state: parameters, optimizer, counters.
        step: steps done so far.
        checkpoints: where the state is saved.
        train_step: the update.
        scores: loss and accuracy of a batch, as sums.
    """

    config: ConfigDict
    workdir: Path
    console: Console
    setup_seconds: float
    batches: PackedBatches
    validation: Callable[[], PackedBatches] | None
    mesh: Mesh
    state: TrainState
    step: int
    checkpoints: Checkpoints
    train_step: SftStep
    scores: Callable[[Params, PackedBatch], Metrics]


def prepare(config: ConfigDict, workdir: Path) -> SftRun:
    """Checks and loads all that a run needs; from the latest checkpoint in `workdir` where there is one.

    Raises:
        UserError, OSError: a config, data or model that cannot be used; the message says what to do.
    """
    # -- What can be checked before the first device is touched.
    started, workdir, console = time.monotonic(), workdir.resolve(), RunConsole()
    config = resolve(config)
    conversations = _load(config, "split", console)
    validation = _load_validation(config, console)

    # -- Model and processor.
    model_dir = prepare_model(
        "model.path",
        config.model.path,
        config.model.tokenizer,
        "qwen2_5_vl",
        workdir / "random",
        config.seed,
        begun=has_checkpoint(workdir / "checkpoints"),
    )
    keep_side_files(model_dir, tokenizer_in_place(config.model), workdir / "model")
    model = load_config(workdir / "model")
    processor = Processor.from_directory(
        workdir / "model",
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
        max_prompt_tokens=config.sft.row_tokens,
        max_windows=config.sft.row_windows,
    )

    # -- Data, mesh and record.
    batches = _batches(
        config, processor, conversations, shuffle=config.data.shuffle, epochs=None, prefetch=config.data.prefetch
    )
    mesh = make_mesh(**config.mesh)
    check_backend(config.model.attention, mesh.devices.flat[0].platform)
    console.print(arithmetic(config, parameters=count_params(model), mesh=dict(mesh.shape)))
    hashed = itertools.islice(conversations, HASHED) if config.data.path in WORLD else conversations
    record = make_record(config, data=hash_conversations(hashed), model=hash_model(model_dir))

    # -- State: restored, or begun from the starting model.
    begun = begin_or_continue(config, workdir, console, record, model_dir, mesh, batches, updates=config.steps)
    return SftRun(
        config=config,
        workdir=workdir,
        console=console,
        setup_seconds=time.monotonic() - started,
        batches=batches,
        validation=_make_validation(config, processor, validation) if validation else None,
        mesh=mesh,
        state=begun.state,
        step=begun.step,
        checkpoints=begun.checkpoints,
        train_step=make_sft_step(model, config, mesh, begun.optimizer),
        scores=make_sft_scores(model, config, mesh),
    )


def _load(config: ConfigDict, field: str, console: Console) -> Sequence[Conversation]:
    """The conversations of the split that this field of `config.data` says."""
    conversations, summary = load_conversations(config.data.path, config.data[field], config.seed, f"data.{field}")
    console.print(summary)
    return conversations


def _load_validation(config: ConfigDict, console: Console) -> list[Conversation]:
    """The first conversations of the validation split, in their order; as many as the config asks for."""
    count = config.sft.validate_conversations
    if count == 0:
        return []
    try:
        conversations = _load(config, "validation_split", console)
    except DataError as error:
        raise DataError(f"{error} Or set sft.validate_conversations to 0.") from error
    return [conversations[index] for index in range(min(count, len(conversations)))]


def _batches(
    config: ConfigDict, processor: Processor, conversations: Sequence[Conversation], **options: bool | int | None
) -> PackedBatches:
    return make_batches(
        conversations,
        processor.conversation,
        rows=config.sft.rows_per_step,
        tokens=config.sft.row_tokens,
        windows=config.sft.row_windows,
        waiting=config.sft.waiting,
        patch_size=processor.patch_size,
        pad_id=processor.pad_id,
        seed=config.seed,
        **options,
    )


def _make_validation(
    config: ConfigDict, processor: Processor, conversations: Sequence[Conversation]
) -> Callable[[], PackedBatches]:
    """`SftRun.validation`: the conversations in their order, once."""
    batches = _batches(config, processor, conversations, shuffle=False, epochs=1, prefetch=config.data.prefetch)
    beginning = batches.get_state()

    def again() -> PackedBatches:
        batches.set_state(beginning | {"dropped": batches.dropped})  # so that a drop is named once
        return batches

    return again
