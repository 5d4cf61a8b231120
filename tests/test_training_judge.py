"""What `config.judge` says reaches the judge, and what it said is flipped under the run's seed."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.judge.prompts import load_prompt
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.records import Problem
from perception_r1_jax.training import judge as training_judge
from perception_r1_jax.training.loop import take_judgements

OTHERS = {
    "mode": "free",
    "max_prompt_tokens": 101,
    "max_thought_tokens": 102,
    "max_new_tokens": 103,
    "batch_size": 104,
    "weights_int8": True,
    "host_memory": True,
    "prompt": "words.json",
    "sees": True,
}
"""Fields that a judge on the mesh takes, each with another value than the default."""


@pytest.fixture
def loaded(monkeypatch):
    calls = []

    def load(*args, **fields):
        calls.append(fields)
        return types.SimpleNamespace(prompt=load_prompt(), parameters=0)

    monkeypatch.setattr(training_judge, "load_judge", load)
    return calls


def test_every_field_reaches_the_judge_on_the_mesh(loaded):
    config = default_config()
    config.judge.path = "judge"
    defaults = {name: config.judge[name] for name in OTHERS}
    training_judge.make_judge(config, Path("judge"), mesh=None)
    config.judge.update(OTHERS)
    config.judge.cache_size = 3
    judge = training_judge.make_judge(config, Path("judge"), mesh=None)
    assert [{name: fields[name] for name in OTHERS} for fields in loaded] == [defaults, OTHERS]
    assert all(defaults[name] != value for name, value in OTHERS.items())
    for number in range(5):
        judge.keep(bytes([number]), Judgement((1.0,), 1, 1, "ok"))
    assert judge.kept == 3


def test_verdicts_are_flipped_under_the_seed_and_step_of_the_run():
    rows = [[Judgement((1.0,) * 8, 8, 8, "ok")] * 4]
    stream = types.SimpleNamespace(judgements=lambda: rows)
    failures = types.SimpleNamespace(add=list)

    def flipped(seed: int, step: int = 1) -> np.ndarray:
        config = default_config()
        config.seed, config.judge.flip_probability = seed, 0.5
        run = types.SimpleNamespace(config=config, judge_failures=failures)
        judged = take_judgements(run, step, [Problem("a", "", (), "")], stream)
        return np.array([judgement.verdicts for judgement in judged[0]])

    np.testing.assert_array_equal(flipped(1), flipped(1))
    assert (flipped(1) != flipped(2)).any()
    assert (flipped(1) != flipped(1, step=2)).any()
    assert 0 < flipped(1).mean() < 1
