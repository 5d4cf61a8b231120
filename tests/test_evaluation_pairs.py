"""Result files paired by problem, and what is wrong with those that cannot be."""

from __future__ import annotations

import json
import random

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.mcnemar import difference_interval, mcnemar_exact
from perception_r1_jax.evaluation.pairs import Pairs, pair, read_verdicts

BEFORE = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 1.0, "e": 0.0, "f": None, "g": 1.0}
AFTER = {"g": None, "f": 1.0, "e": 0.0, "d": 0.0, "c": 1.0, "b": 1.0, "a": 1.0}


def test_each_problem_is_counted_once():
    pairs = pair(BEFORE, AFTER)
    assert pairs == Pairs(both=1, gained=2, lost=1, neither=1, without_value=2)
    assert (pairs.count, pairs.before, pairs.after, pairs.difference) == (5, 2 / 5, 3 / 5, pytest.approx(1 / 5))
    assert pairs.p == mcnemar_exact(1, 2)
    assert pairs.interval == difference_interval(2, 1, 5)


def test_the_other_way_round():
    assert pair(AFTER, BEFORE) == Pairs(both=1, gained=1, lost=2, neither=1, without_value=2)


def test_problems_of_one_side_are_named():
    others = {**AFTER, **{f"x{i}": 1.0 for i in range(9)}}
    del others["c"]
    with pytest.raises(UserError, match=r"1 only before \(c\); 9 only after \(x0, x1, x2, x3, x4, \.\.\.\)"):
        pair(BEFORE, others)


def write(path, lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_the_order_of_lines_does_not_matter(tmp_path):
    lines = [{"problem_id": i, "probe": bool(i % 3), "response": "a\u2028b"} for i in range(20)]
    file = write(tmp_path / "a.jsonl", lines)
    random.Random(0).shuffle(lines)
    shuffled = write(tmp_path / "b.jsonl", lines)
    assert read_verdicts(file, "probe") == read_verdicts(shuffled, "probe")
    assert pair(read_verdicts(file, "probe"), read_verdicts(shuffled, "probe")) == Pairs(13, 0, 0, 7)


def test_the_ways_to_write_a_verdict(tmp_path):
    values = [True, False, 1, 0, 1.0, 0.0, None]
    file = write(tmp_path / "a.jsonl", [*({"problem_id": str(i), "x": x} for i, x in enumerate(values)), ""])
    assert list(read_verdicts(file, "x").values()) == [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, None]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"problem_id": "a", "x": 1}, "line 2: the problem 'a' stands there a second time"),
        ({"problem_id": "b", "y": 1}, "line 2 has no field 'x'; it has problem_id, y"),
        ({"x": 1}, "line 2 has no field 'problem_id'; it has x"),
        ({"problem_id": "b", "x": 0.5}, "line 2: 'x' is 0.5; it must be true, false, 1, 0 or null"),
        ({"problem_id": "b", "x": "yes"}, "line 2: 'x' is 'yes'"),
        ({"problem_id": "b", "x": [1]}, r"line 2: 'x' is \[1\]"),
        ([1], "line 2 is a list, not an object with 'problem_id' and 'x'"),
        ('{"problem_id": "b", "x"', "line 2 is not JSON"),
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl", [{"problem_id": "a", "x": 1}, line])
    with pytest.raises(UserError, match=message):
        read_verdicts(file, "x")


def test_other_bytes_are_no_json(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(UserError, match="line 1 is not JSON"):
        read_verdicts(tmp_path / "a.jsonl", "x")
