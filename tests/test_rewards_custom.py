"""Rewards of the user's own, from import paths."""

from __future__ import annotations

import math
import sys

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.rewards.custom import custom_reward, load_reward


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text("CONSTANT = 1\ndef units(row, response): return row['unit'] in response\n")
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_rewards", None)


def test_load_and_call(own_rewards):
    function = load_reward("own_rewards:units")
    assert custom_reward(function, {"unit": "cm"}, "5 cm") == (1.0, None)
    assert custom_reward(function, {"unit": "cm"}, "5 m") == (0.0, None)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("own_rewards", "package.module:function"),
        (":units", "package.module:function"),
        ("own_rewards:", "package.module:function"),
        ("no_such_module:units", r"ModuleNotFoundError.*\. The module must be .* PYTHONPATH\."),
        ("own_rewards:nothing", "AttributeError.*nothing"),
        ("own_rewards:CONSTANT", "int, not a function"),
        ("broken_rewards:units", "ZeroDivisionError"),
    ],
)
def test_errors_name_the_path(own_rewards, path, reason):
    with pytest.raises(UserError, match=f"config.reward.function.*{path}.*{reason}"):
        load_reward(path)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda row, response: row["absent"], "KeyError: 'absent'"),
        (lambda row, response: math.nan, "returned nan"),
        (lambda row, response: math.inf, "returned inf"),
        (lambda row, response: None, "TypeError"),
        (lambda row, response: "much", "ValueError"),
    ],
)
def test_a_failure_is_not_a_number(function, reason):
    value, found = custom_reward(function, {}, "")
    assert math.isnan(value)
    assert reason in found
