"""Judge against checker: what is compared, what is left out, and where they part."""

from __future__ import annotations

import types

import numpy as np
import pytest

from perception_r1_jax.records import Problem
from perception_r1_jax.report.agreement import compare_judge, correlate
from perception_r1_jax.report.workdir import MissingData, Problems

CHECKER = types.SimpleNamespace(reflected=lambda annotation, response: annotation in response)
PROBLEMS = Problems({name: Problem(name, "?", (), "5", ("a", "b")) for name in ("1", "2")})


def line(step: int, response: str, verdicts, **fields) -> dict:
    return {"step": step, "problem_id": "1", "sample": 0, "response": response, "verdicts": verdicts, **fields}


def test_correlate():
    x, y = np.array([0.0, 0.5, 1.0, 1.0]), np.array([0.0, 1.0, 0.5, 1.0])
    assert correlate(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert correlate(x, np.ones(4)) is None


def test_a_part_counts_verdicts_both_ways():
    lines = [line(1, "a b", [1.0, 1.0]), line(1, "a", [1.0, 1.0]), line(1, "b", [0.0, 0.0]), line(1, "", [0.0, 0.0])]
    (part,) = compare_judge(lines, PROBLEMS, CHECKER).parts
    assert part.means == [0.5, 0.5]
    assert part.verdicts == {(True, True): 3, (True, False): 1, (False, True): 1, (False, False): 3}
    assert part.alike == 0.75
    assert part.pearson == pytest.approx(np.corrcoef([1, 1, 0, 0], [1, 0.5, 0.5, 0])[0, 1])
    assert part.parted


def test_examples_have_the_widest_gaps_one_of_a_problem():
    lines = [line(1, "a b", [1.0, 1.0]), line(1, "a", [1.0, 1.0]), line(1, "", [1.0, 1.0]), line(1, "b", [0.0, 0.0])]
    lines += [line(1, "a b", [1.0, 0.0]) | {"problem_id": "2"}]
    (part,) = compare_judge(lines, PROBLEMS, CHECKER).parts
    assert [(item.line["problem_id"], item.line["response"]) for item in part.examples] == [("1", ""), ("2", "a b")]


def test_tenths_are_of_the_steps():
    lines = [line(step, "a" * (step % 2), [1.0, 0.0]) for step in range(5, 30) for _ in range(3)]
    parts = compare_judge(lines, PROBLEMS, CHECKER).parts
    assert [(part.first, part.last) for part in parts[:2]] == [(5, 7), (8, 10)]
    assert (len(parts), parts[-1].last, sum(len(part.items) for part in parts)) == (10, 29, 75)
    assert parts[0].pearson is None
    assert not parts[0].parted


def test_what_cannot_be_compared_is_counted_by_reason():
    lines = [
        line(1, "a", [1.0, 0.0]),
        line(1, "a", None, judge_status="missing"),
        line(1, "a", [1.0]),
        line(1, "a", [1.0, 0.0]) | {"problem_id": "gone"},
    ]
    agreement = compare_judge(lines, PROBLEMS, CHECKER)
    assert len(agreement.parts[0].items) == 1
    assert agreement.left_out == {
        "no judgement (missing)": 1,
        "other annotations than the problem's": 1,
        "unknown problem": 1,
    }


def test_nothing_to_compare_is_said_with_the_reasons():
    with pytest.raises(MissingData, match=r"no judgement \(none\): 2"):
        compare_judge([line(1, "a", None, judge_status="none")] * 2, PROBLEMS, CHECKER)
    with pytest.raises(MissingData, match="cannot be read: gone"):
        compare_judge([], Problems({}, "gone"), CHECKER)
