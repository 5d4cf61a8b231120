"""The judge of a run: on the run's mesh or behind an endpoint, asked about each response once."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from perception_r1_jax.judge.cache import CachedJudge
from perception_r1_jax.judge.call import AnyJudge
from perception_r1_jax.judge.endpoint import is_url
from perception_r1_jax.judge.on_mesh import load_judge
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.training.models import tokenizer_in_place


def make_judge(config: ConfigDict, directory: Path | None, mesh: Mesh) -> CachedJudge | None:
    """The judge that `config.judge` asks for; None without one.

    Args:
        config: of the run. An endpoint's only model is written to `judge.model`, so that `run.json` has it.
        directory: of the model, None for an endpoint.
        mesh: of the run.

    Raises:
        UserError, OSError: a model that cannot be used, or an endpoint that does not answer.
    """
    if not config.judge.path:
        return None
    judge = _connect(config) if directory is None else _load(config, directory, mesh)
    return CachedJudge(judge, config.judge.cache_size)


def has_own_model(config: ConfigDict) -> bool:
    """Whether the run itself holds the judge's model."""
    return bool(config.judge.path) and not is_url(config.judge.path)


def judge_family(config: ConfigDict) -> str:
    """The family of a random judge."""
    return "qwen2_5_vl" if config.judge.sees else "qwen2"


def _connect(config: ConfigDict) -> AnyJudge:
    settings = config.judge
    judge = connect_judge(
        settings.path,
        model=settings.model,
        prompt=settings.prompt,
        max_new_tokens=settings.max_new_tokens,
        timeout_seconds=settings.timeout_seconds,
        retries=settings.retries,
        concurrency=settings.concurrency,
        seed=config.seed,
        fidelity=config.fidelity,
    )
    settings.model = judge.model
    return judge


def _load(config: ConfigDict, directory: Path, mesh: Mesh) -> AnyJudge:
    settings = config.judge
    return load_judge(
        directory,
        mesh,
        tokenizer=tokenizer_in_place(settings),
        prompt=settings.prompt,
        sees=settings.sees,
        mode=settings.mode,
        max_prompt_tokens=settings.max_prompt_tokens,
        max_thought_tokens=settings.max_thought_tokens,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        min_pixels=config.model.min_pixels,
        max_pixels=config.model.max_pixels,
        dtype=jnp.dtype(config.model.dtype),
        weights_memory=settings.weights_memory,
        cache_memory=settings.cache_memory,
        weights_int8=settings.weights_int8,
        host_memory=settings.host_memory,
        fidelity=config.fidelity,
    )
