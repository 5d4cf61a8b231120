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
from tests import claim_run
from tests.claim_run import make_items, plan, recorded, write_data, write_workdir


@dataclasses.dataclass(frozen=True)
class Traits:
    looks_first: bool
    wrong_kinds: tuple[str, ...]


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


TRAITS = [Traits(False, ("length", "parallel")), Traits(True, ()), None, Traits(False, ())]
OUTCOMES = Outcomes.of(ITEMS, TRAITS)


def test_outcomes_read_as_they_are():
    assert dataclasses.asdict(OUTCOMES) == {
        "accuracy": "10-1",
        "perception": "01-1",
        "probe": "1--0",
        "facts_right": "3 1 - 0",
        "facts_wrong": "12 0 - 0",
        "fact_states": "ra  - m",
        "wrong_kinds": "lp  - ",
        "looks_first": "01-0",
    }
    assert (OUTCOMES.needed, OUTCOMES.stated) == (3, 16)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [("accuracy", 2 / 3), ("perception", 2 / 3), ("probe", 1 / 2), ("precision", 4 / 16)],
)
def test_a_share_leaves_out_what_has_no_value(measure, expected):
    assert share(OUTCOMES.parts(measure)) == pytest.approx(expected)


def test_shares_are_those_of_the_evaluation(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    record = recorded(run, 0.8)
    for rate in ("accuracy", "perception", "probe", "precision"):
        for when in ("before", "after"):
            assert share(getattr(record, when).parts(rate)) == pytest.approx(record.result[f"{rate}_{when}"]), rate


def test_no_stated_fact_has_no_precision():
    assert np.isnan(share(Outcomes.of([Item("a", "x", facts_right=0, facts_wrong=0)], [None]).parts("precision")))


def test_the_states_of_needed_facts():
    assert OUTCOMES.states() == pytest.approx({"right": 1 / 3, "misread": 1 / 3, "absent": 1 / 3})
    items = make_items(np.random.default_rng(0), 0.6)
    states = [state for item in items for state in item.fact_states]
    outcomes = Outcomes.of(items, [None] * len(items))
    assert outcomes.states()["misread"] == pytest.approx(states.count("misread") / len(states))


def test_a_record_holds_what_statistics_need_and_is_small(tmp_path):
    (run,) = plan(tmp_path, ["flipped_20"], [3])
    record = recorded(run)
    (read,) = read_records(run.record.parent)
    assert read == json_like(record)
    assert (read.variant, read.seed, read.changes) == ("flipped_20", 3, {"seed": 3, "judge.flip_probability": 0.2})
    assert read.problems["count"] == len(read.before.accuracy) == len(read.families) == 60
    assert read.families[:4] == ["circles", "triangles", "triangles", "circles"]
    assert read.after.looks_first.startswith("10001000")
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


def test_what_responses_perceive_is_what_the_checker_says_now(tmp_path, monkeypatch):
    (run,) = plan(tmp_path, ["visual"], [0])
    first = recorded(run)

    def stricter(row, response):
        told = claim_run.Told(**json.loads(response))
        return dataclasses.replace(told, perceived=False, states=["misread"] * len(told.states))

    monkeypatch.setattr(claim_run, "perceive", stricter)
    again = record_run(run)
    assert set(again.after.perception) == {"0"}
    assert set(again.after.fact_states) == {"m", " "}
    assert (again.result["perception_after"], again.result["facts"]["newly_stated"]) == (0.0, 0)
    assert (again.after.accuracy, again.after.probe) == (first.after.accuracy, first.after.probe)
    unlike = {name for name in again.result if again.result[name] != first.result[name]}
    told = ("perception_before", "perception_after", "change_perception", "mcnemar_perception", "facts")
    assert unlike == {*told}


def test_a_response_that_the_checker_cannot_read_has_no_verdict(tmp_path, monkeypatch):
    (run,) = plan(tmp_path, ["visual"], [0])
    write_workdir(run)
    monkeypatch.setattr(claim_run, "perceive", lambda row, response: response.no)
    record = record_run(run)
    assert set(record.after.perception) == {"-"}
    assert record.result["evaluation_after"]["failed"] == {"perception": 60}
    assert "0" in record.after.accuracy


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_whose_data_have_changed_is_not_recorded(split, tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    write_workdir(run)
    write_data(tmp_path, **{split: "8"})
    with pytest.raises(UserError, match=r"visual-0 cannot be recorded\. .*the data at .* are not those of the run"):
        record_run(run)
    assert not run.record.exists()


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


def test_a_record_of_a_variant_that_there_is_not_is_named(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    recorded(run)
    run.record.write_text(run.record.read_text().replace('"variant": "visual"', '"variant": "gamma_0.5"'))
    with pytest.raises(UserError, match=r"visual-0\.json is of the variant 'gamma_0\.5', none of visual, "):
        read_records(tmp_path / "out")


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("evaluated problems", {"run": {"hashes": {"evaluation": "other"}}}),
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


@pytest.mark.parametrize(("split", "what"), [("train", "training data"), ("test", "evaluated problems")])
def test_other_problems_under_the_same_ids_are_not_compared(split, what, tmp_path):
    """As when the world is drawn with another seed between two runs."""
    recorded(*plan(tmp_path, ["visual"], [0]))
    recorded(*plan(tmp_path, ["visual"], [1], **{split: "8"}))
    with pytest.raises(UserError, match=f"visual-1 and visual-0 are not of the same {what}, so"):
        read_records(tmp_path / "out")


def changed(record, fields):
    """The record with some of its fields' entries changed, at any depth."""
    content = {name: merge(getattr(record, name), change) for name, change in fields.items()}
    return dataclasses.replace(record, **content)


def merge(old, new):
    return {**old, **{key: merge(old[key], value) for key, value in new.items()}} if isinstance(new, dict) else new


def test_another_conversion_of_the_models_is_no_other_input(tmp_path):
    records = [recorded(run) for run in plan(tmp_path, ["visual"], [0, 1])]
    check_alike([records[0], changed(records[1], {"run": {"hashes": {"policy": "other", "judge": "other"}}})])
