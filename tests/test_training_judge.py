"""What `config.judge` says reaches the judge, and what it said is flipped under the run's seed."""

from __future__ import annotations

import functools
import inspect
import types
from pathlib import Path

import numpy as np
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.judge.on_mesh import load_judge
from perception_r1_jax.judge.prompts import load_prompt
from perception_r1_jax.judge.remote import connect_judge
from perception_r1_jax.judge.verdicts import Judgement
from perception_r1_jax.records import Problem
from perception_r1_jax.training import judge as training_judge
from perception_r1_jax.training.loop import take_judgements

ON_THE_MESH = {
    "judge.mode": "free",
    "judge.tokenizer": "words",
    "judge.max_prompt_tokens": 101,
    "judge.max_thought_tokens": 102,
    "judge.max_new_tokens": 103,
    "judge.batch_size": 104,
    "judge.weights_memory": 0.3,
    "judge.cache_memory": 0.2,
    "judge.weights_int8": True,
    "judge.host_memory": True,
    "judge.prompt": "words.json",
    "judge.sees": True,
    "model.min_pixels": 105,
    "model.max_pixels": 106,
    "model.dtype": "float32",
    "fidelity": "paper",
}
REMOTE = {
    "judge.model": "one",
    "judge.prompt": "words.json",
    "judge.max_new_tokens": 103,
    "judge.timeout_seconds": 104.0,
    "judge.retries": 105,
    "judge.concurrency": 106,
    "seed": 107,
    "fidelity": "paper",
}
"""Fields that either judge takes, each with another value than the default."""


@pytest.fixture
def made(monkeypatch):
    """What judges were made with."""
    calls = []

    def make(*args, **fields):
        calls.append(fields)
        return types.SimpleNamespace(prompt=load_prompt(), parameters=0, model=fields.get("model"))

    monkeypatch.setattr(training_judge, "load_judge", make)
    monkeypatch.setattr(training_judge, "connect_judge", make)
    return calls


@pytest.mark.parametrize(
    ("maker", "path", "directory", "others"),
    [(load_judge, "judge", Path("judge"), ON_THE_MESH), (connect_judge, "http://localhost", None, REMOTE)],
    ids=["on the mesh", "remote"],
)
def test_every_field_reaches_the_judge(made, maker, path, directory, others):
    config = default_config()
    config.judge.path = path
    fields = config.copy_and_resolve_references().to_dict()
    defaults = {name: functools.reduce(dict.get, name.split("."), fields) for name in others}
    training_judge.make_judge(config, directory, mesh=None)
    config.update_from_flattened_dict(others)
    training_judge.make_judge(config, directory, mesh=None)
    parameters = inspect.signature(maker).parameters.values()
    taken = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert {name.rpartition(".")[2] for name in others} == taken
    assert made == [{name.rpartition(".")[2]: value for name, value in each.items()} for each in (defaults, others)]
    assert all(defaults[name] != value for name, value in others.items())


def test_as_many_judgements_are_kept_as_the_config_says(made):
    config = default_config()
    config.judge.path, config.judge.cache_size = "judge", 3
    judge = training_judge.make_judge(config, Path("judge"), mesh=None)
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
