"""scripts/mcnemar.py: what it says, to a reader and to a program."""

from __future__ import annotations

import json

import pytest

from perception_r1_jax.evaluation.mcnemar import mcnemar_exact
from scripts import mcnemar


@pytest.fixture
def files(tmp_path):
    """Ten problems: 4 right both times, 3 gained, 1 lost, 1 wrong both times, 1 without a value."""
    before = [1, 1, 1, 1, 0, 0, 0, 1, 0, None]
    after = [1, 1, 1, 1, 1, 1, 1, 0, 0, 1]
    for name, verdicts in (("before", before), ("after", after)):
        lines = [json.dumps({"problem_id": f"p{i}", "perception": v}) for i, v in enumerate(verdicts)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    return [str(tmp_path / "before.jsonl"), str(tmp_path / "after.jsonl")]


def test_it_tells_a_reader(files, capsys):
    mcnemar.main(files)
    text = capsys.readouterr().out
    assert "perception of 9 problems before and after (1 more without a value are left out)" in text
    words = " ".join(text.split())
    assert "right before 5 55.6%" in words
    assert "right after 7 77.8%" in words
    assert "difference +22.2 points, 95% interval" in words
    assert "gained 3 wrong before, right after lost 1 right before, wrong after" in words
    assert "both 4 right before and after neither 1 wrong before and after" in words
    assert "p = 0.625" in words
    assert "3 gained to 1 lost would come about with this probability" in words


def test_it_tells_a_program(files, capsys):
    mcnemar.main([*files, "--json"])
    numbers = json.loads(capsys.readouterr().out)
    counts = {"gained": 3, "lost": 1, "both": 4, "neither": 1, "without_value": 1}
    assert counts.items() <= numbers.items()
    assert numbers["p"] == mcnemar_exact(1, 3)
    assert numbers["difference"] == pytest.approx(2 / 9)
    assert numbers["low"] < numbers["difference"] < numbers["high"]


def test_no_change(files, capsys):
    mcnemar.main([files[0], files[0]])
    assert "No problem changed: nothing speaks for a difference." in capsys.readouterr().out


def test_what_cannot_be_compared_is_said_in_one_line(files, tmp_path):
    (tmp_path / "null.jsonl").write_text("\n".join(json.dumps({"problem_id": f"p{i}", "x": None}) for i in range(3)))
    null = str(tmp_path / "null.jsonl")
    for arguments, message in [
        ([*files, "--field", "probe"], "line 1 has no field 'probe'"),
        ([null, null, "--field", "x"], "no problem has a value of 'x' in both files"),
        ([files[0], str(tmp_path / "absent.jsonl")], "absent.jsonl"),
    ]:
        with pytest.raises(SystemExit, match=message):
            mcnemar.main(arguments)
