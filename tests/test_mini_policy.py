"""The embedded policy: it answers in the format, and perceives and solves problems that it never saw, imperfectly."""

from __future__ import annotations

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from configs import mini
from perception_r1_jax.assets import MINI_POLICY
from perception_r1_jax.evaluation.evaluate import evaluate
from perception_r1_jax.evaluation.summary import summarise
from perception_r1_jax.evaluation.task import load_evaluation
from perception_r1_jax.inference import Engine
from perception_r1_jax.models import load_config
from perception_r1_jax.processing import Processor
from perception_r1_jax.rewards import format_reward
from perception_r1_jax.sharding import make_mesh
from perception_r1_jax.weights import load_params


@pytest.fixture(scope="module")
def items():
    """Greedy responses to the validation split, graded."""
    config = mini.get_config()
    config.data.path, config.evaluation.split = "geometry_world", "val"
    console = Console(file=io.StringIO())
    evaluation = load_evaluation(config, console)
    model, mesh = load_config(MINI_POLICY), make_mesh(devices=jax.devices()[:1])
    processor = Processor.from_directory(
        MINI_POLICY, max_prompt_tokens=config.rollout.prompt_buckets[-1], max_windows=config.rollout.window_buckets[-1]
    )
    engine = Engine(model, load_params(MINI_POLICY, model, mesh, jnp.float32), mesh)
    return evaluate(evaluation, engine, processor, console)


def test_it_perceives_and_solves_imperfectly(items):
    summary = summarise(items, 0.0)
    assert summary.problems == 400
    assert not summary.failed
    assert 0.40 <= summary.perception <= 0.75
    assert 0.40 <= summary.accuracy <= 0.75


def test_it_answers_in_the_format(items):
    assert sum(format_reward(item.response) for item in items) / len(items) > 0.98
