"""Small runs of the whole loop, shared by the tests of training: they share their programs too."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from configs import debug
from perception_r1_jax.inference import engine
from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.models import Params, load_config
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.training import loop, setup
from perception_r1_jax.training.checkpoints import Checkpoints
from perception_r1_jax.weights import load_params

JUDGE_PROMPT = Path(__file__).parent / "fixtures" / "judge_prompt.json"
"""A short instruction: the package's own takes most of the time of a run as small as these."""


def small_config(**fields) -> ConfigDict:
    """The debug run, smaller: the programs of all tests compile once thanks to the shared shapes."""
    config = debug.get_config()
    config.steps = 3
    config.checkpoint.every = 1
    config.rollout.prompts_per_step = 2
    config.rollout.samples_per_prompt = 2
    config.rollout.prompt_buckets = (256,)
    config.rollout.window_buckets = (9,)
    config.rollout.response_buckets = (8,)
    config.judge.prompt = str(JUDGE_PROMPT)
    config.judge.max_prompt_tokens = 512
    config.judge.batch_size = 4
    config.grpo.micro_batch_prompts = 1
    config.grpo.micro_batch_samples = 2
    config.mesh.fsdp = 1
    config.reward.workers = 1
    config.update_from_flattened_dict(fields)
    return config


def one_device_mesh(**sizes):
    """Takes the place of `make_mesh`: what eight devices do is tested for the engine, the step and one whole run."""
    return make_mesh(**sizes, devices=jax.devices()[:1])


def made_once(make: Callable) -> Callable:
    """`make(model, config, mesh, ...)`, a maker of programs, called once for each of what it makes.

    A further argument, the optimizer, is what the config says.
    """
    made = {}

    @functools.wraps(make)
    def take(model, config, mesh, *rest, **options):
        key = (model, config.to_json(), mesh, *options.items())
        if key not in made:
            made[key] = make(model, config, mesh, *rest, **options)
        return made[key]

    return take


_SHARED = {
    (setup, "load_problems"): functools.cache(setup.load_problems),
    (setup, "TrainStep"): made_once(setup.TrainStep),
    (setup, "LogProbs"): made_once(setup.LogProbs),
    (engine, "Programs"): functools.cache(engine.Programs),
}


def prepare(config: ConfigDict, workdir: Path) -> setup.Run:
    """A run about to start, with the problems and the programs of the runs before it."""
    with pytest.MonkeyPatch.context() as patch:
        for place, shared in _SHARED.items():
            patch.setattr(*place, shared)
        return setup.prepare(config, workdir)


def train(config: ConfigDict, workdir: Path) -> dict[str, Any] | None:
    """Prepares and runs, as scripts/train.py does."""
    return loop.train(prepare(config, workdir))


@contextlib.contextmanager
def signal_at_the_last_save() -> Iterator[None]:
    """A SIGTERM comes when a run closes its checkpoints; nothing but a `StopRequest` takes it."""

    def closing(checkpoints):
        signal.raise_signal(signal.SIGTERM)
        close(checkpoints)

    def at_once(number, frame):
        raise AssertionError("stopped at once")

    close, usual = Checkpoints.close, signal.signal(signal.SIGTERM, at_once)
    with mock.patch.object(Checkpoints, "close", closing):
        yield
    signal.signal(signal.SIGTERM, usual)


def lines(path: Path) -> list[dict[str, Any]]:
    """A .jsonl file's objects."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_clocks(line: dict[str, Any]) -> dict[str, Any]:
    """Without what says how a step was computed, not what came of it."""
    how = (*(f"rollout/{name}" for name in GenerationStats().metrics()), "judge/cache_hit_rate")
    how += ("time/", "memory/", "compilations", "train/tflops")
    return {k: v for k, v in line.items() if not k.startswith(how)}


def params_of(directory: Path) -> Params:
    """The parameters in a checkpoint of a run."""
    mesh = make_mesh(devices=jax.devices()[:1])
    return load_params(directory, load_config(directory.parent.parent / "model"), mesh, jnp.float32)


def share_of_capitals(row, response):
    """A reward of the user's own, which a model of random weights can learn within seconds."""
    return sum(letter.isupper() for letter in response) / max(len(response), 1)


def capitals_in_some_problems(row, response):
    """Another such reward, which is the same for all responses to most problems."""
    return share_of_capitals(row, response) if zlib.crc32(row["problem"].encode()) % 2 else 0.5


def length_of_family(row, response):
    """Another one, which reads a column of the problem's row."""
    return float(len(row["family"]))
