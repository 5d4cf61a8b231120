"""Checking modules: which are taken, and what is said of those that are not."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

import perception_r1_jax
from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.checker import load_checker
from perception_r1_jax.evaluation.task import probe_questions
from perception_r1_jax.records import Problem
from tests import stub_checker

PACKAGE = Path(perception_r1_jax.__file__).parent


@pytest.mark.parametrize("part", ["processing", "models", "inference", "judge", "rewards", "grpo"])
def test_what_answers_judges_and_learns_imports_none(part):
    sources = {path.name: path.read_text() for path in (PACKAGE / part).rglob("*.py")}
    telling = re.compile(r"^\s*(?:from|import) .*(?:checker|geometry_world|evaluation)", re.MULTILINE)
    assert sources
    assert not {name: telling.findall(source) for name, source in sources.items() if telling.search(source)}


def test_a_module_is_a_checker():
    assert load_checker("tests.stub_checker") is stub_checker


def test_one_that_cannot_be_imported_is_named():
    with pytest.raises(UserError, match=r"config.evaluation.checker 'no.such' cannot be imported: ModuleNotFoundError"):
        load_checker("no.such")


def test_what_it_lacks_is_named(monkeypatch):
    half = types.ModuleType("half")
    half.perceive, half.probe = stub_checker.perceive, "no function"
    monkeypatch.setitem(sys.modules, "half", half)
    with pytest.raises(UserError, match="'half' has no function probe, probe_right"):
        load_checker("half")


def test_a_checker_of_other_data_is_told_with_the_problem(monkeypatch):
    problems = [Problem(f"val/{i}", "?", (), "1") for i in range(2)]
    assert probe_questions(stub_checker, problems) == ["How long is AB?"] * 2
    monkeypatch.setattr(stub_checker, "probe", lambda row: row["probe_question"])
    with pytest.raises(UserError, match="no question for the problem 'val/0': KeyError: 'probe_question'"):
        probe_questions(stub_checker, problems)
