"""Outcomes in short texts, records there and back, and records that do not belong together."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from perception_r1_jax.claim.outcomes import Outcomes, share
from perception_r1_jax.claim.record import check_alike, read_records, record_run
from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.items import Item
from tests.claim_run import make_items, plan, recorded, write_workdir

ITEMS = [
    Item(
        "a",
        "x",
        accuracy=1.0,
        perception=0.0,
        probe=1.0,
        facts_right=3,
        facts_wrong=12,
        fact_states=["right", "absent"],
    ),
    Item("b", "y", accuracy=0.0, perception=1.0, probe=None, facts_right=1, facts_wrong=0, fact_states=[]),
    Item("c"),
    Item("d", "z", accuracy=1.0, perception=1.0, probe=0.0, facts_right=0, facts_wrong=0, fact_states=["misread"]),
]


def test_outcomes_read_as_they_are():
    assert Outcomes.of(ITEMS) == Outcomes(
        accuracy="10-1", perception="01-1", probe="1--0", facts_right="3 1 - 0", facts_wrong="12 0 - 0",
        fact_states="ra  - m",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("accuracy", 2 / 3), ("perception", 2 / 3), ("probe", 1 / 2), ("precision", 4 / 16)],
)
def test_a_share_leaves_out_what_has_no_value(measure, expected):
    assert share(Outcomes.of(ITEMS).parts(measure)) == pytest.approx(expected)


def test_shares_are_those_of_the_evaluation(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    record = recorded(run, 0.8)
    for rate in ("accuracy", "perception", "probe", "precision"):
        for when in ("before", "after"):
            assert share(getattr(record, when).parts(rate)) == pytest.approx(record.result[f"{rate}_{when}"]), rate


def test_no_stated_fact_has_no_precision():
    assert np.isnan(share(Outcomes.of([Item("a", "x", facts_right=0, facts_wrong=0)]).parts("precision")))


def test_the_states_of_needed_facts():
    assert Outcomes.of(ITEMS).states() == pytest.approx({"right": 1 / 3, "misread": 1 / 3, "absent": 1 / 3})
    items = make_items(np.random.default_rng(0), 0.6)
    states = [state for item in items for state in item.fact_states]
    assert Outcomes.of(items).states()["misread"] == pytest.approx(states.count("misread") / len(states))


def test_a_record_holds_what_statistics_need_and_is_small(tmp_path):
    (run,) = plan(tmp_path, ["flipped_20"], [3])
    record = recorded(run)
    (read,) = read_records(run.record.parent)
    assert read == json_like(record)
    assert (read.variant, read.seed, read.changes) == ("flipped_20", 3, {"seed": 3, "judge.flip_probability": 0.2})
    assert read.problems["count"] == len(read.before.accuracy) == 60
    assert read.config["judge.flip_probability"] == 0.2
    assert read.result["seconds"] == 503.0
    assert read.curves["reward/accuracy"] == pytest.approx(np.arange(1.5, 20, 2) / 20)
    assert run.record.stat().st_size < 20_000


def json_like(record):
    """With lists for tuples, as JSON has them."""
    return dataclasses.replace(
        record,
        **{name: json.loads(json.dumps(getattr(record, name))) for name in ("result", "run", "changes", "curves")},
    )


def test_judge_against_checker_in_each_tenth(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    tenths = recorded(run).tenths
    assert [(tenth.first_step, tenth.last_step, tenth.responses) for tenth in tenths[:2]] == [(1, 2, 16), (3, 4, 16)]
    assert all(tenth.pearson == pytest.approx(1.0) for tenth in tenths[:5])
    assert max(tenth.pearson for tenth in tenths[5:]) < 0.9


def test_a_run_without_a_judge_has_nothing_to_compare(tmp_path):
    (run,) = plan(tmp_path, ["accuracy_only"], [0])
    assert recorded(run).tenths is None


def test_a_missing_evaluation_is_named(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    write_workdir(run)
    (run.workdir / "eval" / "test-20.jsonl").unlink()
    with pytest.raises(UserError, match=r"eval/test-20\.jsonl is missing"):
        record_run(run)
    assert not run.record.exists()


def test_records_come_in_the_order_of_variants_and_seeds(tmp_path):
    for run in reversed(plan(tmp_path, ["visual", "accuracy_only", "flipped_20"], [2, 10])):
        recorded(run)
    names = [record.name for record in read_records(tmp_path / "out")]
    assert names == [f"{name}-{seed}" for name in ("visual", "accuracy_only", "flipped_20") for seed in (2, 10)]


def test_a_folder_without_records_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match="holds no record of a run"):
        read_records(tmp_path)
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"other\.json is no record of a run"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("evaluated problems", {"problems": {"count": 60, "ids": "others"}}),
        ("training data", {"run": {"hashes": {"data": "other"}}}),
        (r"config \(steps\)", {"run": {"config": {"steps": 21}}}),
    ],
)
def test_records_of_other_inputs_are_not_compared(what, fields, tmp_path):
    records = [recorded(run) for run in plan(tmp_path, ["visual", "accuracy_only"], [0, 1])]
    check_alike(records)
    records[2] = changed(records[2], fields)
    with pytest.raises(UserError, match=rf"{records[2].name} and visual-0 are not of the same {what}, so"):
        check_alike(records)


def changed(record, fields):
    """The record with some of its fields' entries changed, at any depth."""
    content = {name: merge(getattr(record, name), change) for name, change in fields.items()}
    return dataclasses.replace(record, **content)


def merge(old, new):
    return {**old, **{key: merge(old[key], value) for key, value in new.items()}} if isinstance(new, dict) else new


def test_another_conversion_of_the_models_is_no_other_input(tmp_path):
    records = [recorded(run) for run in plan(tmp_path, ["visual"], [0, 1])]
    check_alike([records[0], changed(records[1], {"run": {"hashes": {"policy": "other", "judge": "other"}}})])
