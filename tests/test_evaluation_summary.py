"""The numbers of evaluations: rates over what has data, facts gained and lost, files, and what the console shows."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.compare import result_fields
from perception_r1_jax.evaluation.files import (
    Evaluated,
    items_file,
    read_evaluated,
    remove_evaluated,
    write_evaluated,
)
from perception_r1_jax.evaluation.items import Item, read_items
from perception_r1_jax.evaluation.mcnemar import difference_interval, mcnemar_exact
from perception_r1_jax.evaluation.shown import comparison_table, describe
from perception_r1_jax.evaluation.summary import fact_changes, summarise


def seen(name: str, states: str, **fields) -> Item:
    """An item whose needed facts have these states, by their first letters."""
    words = {"r": "right", "m": "misread", "a": "absent"}
    return Item(name, "x", "stop", fact_states=[words[letter] for letter in states], **fields)


BEFORE = [
    seen("a", "rma", accuracy=1.0, perception=0.0, facts_right=3, facts_wrong=1, probe=0.0),
    seen("b", "rr", accuracy=0.0, perception=1.0, facts_right=2, facts_wrong=0, probe=0.0),
    seen("c", "am", accuracy=None, perception=0.0, facts_right=0, facts_wrong=2, failures={"accuracy": "timed_out"}),
    Item("d", failures={"response": "prompt above 8 tokens (it has 9)", "probe": "prompt above 8 tokens (it has 9)"}),
]
AFTER = [
    Item("d", failures={"response": "prompt above 8 tokens (it has 9)", "probe": "prompt above 8 tokens (it has 9)"}),
    seen("c", "rr", accuracy=1.0, perception=1.0, facts_right=2, facts_wrong=0, probe=1.0),
    seen("b", "am", accuracy=1.0, perception=0.0, facts_right=0, facts_wrong=1, probe=1.0),
    seen(
        "a", "rrm", accuracy=1.0, perception=0.0, facts_right=2, facts_wrong=1, probe=1.0, probe_finish_reason="length"
    ),
]


def evaluated(items, seconds=60.04) -> Evaluated:
    return Evaluated(items, summarise(items, seconds))


def test_rates_are_over_the_problems_that_have_data():
    summary = summarise(BEFORE, 60.04)
    assert (summary.problems, summary.seconds) == (4, 60.0)
    assert summary.accuracy == 1 / 2
    assert summary.perception == 1 / 3
    assert summary.probe == 0.0
    assert summary.precision == 5 / 8
    assert summary.failed == {"accuracy": 1, "response": 1, "probe": 1}
    assert (summarise(AFTER, 0).cut, summarise(AFTER, 0).probe_cut) == (0, 1)


def test_what_nobody_measured_has_no_rate():
    summary = summarise([Item("a", "x", "length", accuracy=0.0)], 1)
    assert (summary.accuracy, summary.cut) == (0.0, 1)
    assert (summary.perception, summary.probe, summary.precision) == (None, None, None)


def test_needed_facts_gained_and_lost():
    # a: right-right, misread-right, absent-misread; b: right-absent, right-misread; c: absent-right, misread-right
    assert fact_changes(BEFORE, AFTER) == {
        "needed": 7,
        "newly_stated": 1,
        "newly_right": 2,
        "no_longer_stated": 1,
        "no_longer_right": 1,
    }
    assert list(fact_changes(AFTER, BEFORE).values()) == [7, 1, 1, 1, 2]
    assert fact_changes([Item("a")], [Item("a")]) is None


def test_other_needed_facts_after_than_before_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        fact_changes([seen("a", "r")], [seen("a", "rr")])


def test_fields_of_the_result():
    fields = result_fields(evaluated(BEFORE), evaluated(AFTER))
    assert (fields["accuracy_before"], fields["accuracy_after"]) == (1 / 2, 1.0)
    assert (fields["precision_before"], fields["precision_after"]) == (5 / 8, 4 / 6)
    assert fields["mcnemar_accuracy"] == {"gained": 1, "lost": 0, "p": 1.0}
    assert fields["mcnemar_perception"] == {"gained": 1, "lost": 1, "p": 1.0}
    assert fields["mcnemar_probe"] == {"gained": 2, "lost": 0, "p": mcnemar_exact(0, 2)}
    low, high = difference_interval(1, 0, 2)
    assert fields["change_accuracy"] == {"value": 0.5, "low": low, "high": high}
    assert fields["facts"] == fact_changes(BEFORE, AFTER)
    assert fields["evaluation_before"]["seconds"] == 60.0
    assert fields["evaluation_before"]["failed"] == {"accuracy": 1, "response": 1, "probe": 1}
    json.dumps(fields)


def test_a_result_without_evaluations_has_the_same_fields():
    fields = result_fields(None, None)
    assert fields.keys() == result_fields(evaluated(BEFORE), evaluated(AFTER)).keys()
    assert set(fields.values()) == {None}
    lone = result_fields(None, evaluated(AFTER))
    assert (lone["accuracy_before"], lone["accuracy_after"], lone["mcnemar_accuracy"]) == (None, 1.0, None)


def test_evaluations_of_other_problems_are_not_compared():
    with pytest.raises(UserError, match=r"1 only before \(d\)"):
        result_fields(evaluated(BEFORE), evaluated(AFTER[1:]))


def test_files_hold_all(tmp_path):
    path = items_file(tmp_path, "val", 0)
    assert read_evaluated(path) is None
    whole = evaluated([*BEFORE, seen("e\u2028é", "r", extracted="\u0085")])
    write_evaluated(path, whole)
    assert read_evaluated(path) == whole
    assert path == tmp_path / "eval/val-0.jsonl"
    assert sorted(file.name for file in path.parent.iterdir()) == ["val-0.json", "val-0.jsonl"]
    assert json.loads(path.read_text().split("\n")[2])["failures"] == {"accuracy": "timed_out"}


def test_a_file_of_a_version_that_kept_more_is_read(tmp_path):
    path = tmp_path / "val-0.jsonl"
    path.write_text('{"problem_id": "a", "accuracy": 1.0, "facts_needed": 2}\n')
    assert read_items(path) == [Item("a", accuracy=1.0)]


def test_later_evaluations_of_the_same_name_are_removed(tmp_path):
    for name, step in [("val", 0), ("val", 4), ("val", 12), ("val-2", 12), ("test", 12)]:
        write_evaluated(items_file(tmp_path, name, step), evaluated(BEFORE))
    remove_evaluated(tmp_path, "val", 5)
    left = {file.name for file in (tmp_path / "eval").glob("*.jsonl")}
    assert left == {"val-0.jsonl", "val-4.jsonl", "val-2-12.jsonl", "test-12.jsonl"}
    remove_evaluated(tmp_path / "absent", "val", 0)


def test_what_the_console_shows():
    text = describe(evaluated(BEFORE))
    assert text.startswith("4 problems in 60 s: accuracy 50.0%, perception 33.3%, probe 0.0%, precision 62.5%\n")
    assert "  no accuracy, and left out of its rate: 1 of 4 problems (c), the first for timed_out\n" in text
    assert "  no response, and left out of its rate: 1 of 4 problems (d), the first for prompt above 8 tokens" in text
    assert "  cut at the limit of tokens, and graded so: 1 of 4 answers to probes\n" in describe(evaluated(AFTER))
    assert describe(evaluated([Item("a", "x", "stop", accuracy=1.0)])) == "1 problems in 60 s: accuracy 100.0%"


def test_the_table_of_before_and_after():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table(evaluated(BEFORE), evaluated(AFTER)))
    rows = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.startswith("│")}
    assert list(rows) == ["accuracy", "perception", "probe", "precision"]
    low, high = difference_interval(1, 0, 2)
    cells = [cell.strip() for cell in rows["accuracy"].strip("│").split("│")]
    assert cells == ["accuracy", "50.0%", "100.0%", f"+50.0 ({100 * low:+.1f} to {100 * high:+.1f})", "1", "0", "1"]
