"""Which runs the ablation is made of, and how far each of them is."""

from __future__ import annotations

import json

import pytest

from perception_r1_jax.claim.plan import BEGUN, FINISHED, NEW, RECORDED, differing, plan_runs
from perception_r1_jax.errors import UserError
from tests.claim_run import plan, recorded, write_config, write_workdir


def test_every_variant_with_its_seeds_and_pairs_first(tmp_path):
    runs = plan(tmp_path)
    of = {name: [run.seed for run in runs if run.variant == name] for name in dict.fromkeys(r.variant for r in runs)}
    assert of == {
        "visual": [0, 1, 2, 3, 4],
        "accuracy_only": [0, 1, 2, 3, 4],
        "no_repetition": [0, 1],
        "gamma_0.3": [0, 1],
        "gamma_0.7": [0, 1],
        "flipped_20": [0, 1],
    }
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_runs_differ_in_what_their_variant_says_and_in_nothing_else(tmp_path):
    runs = {run.name: run for run in plan(tmp_path)}
    full = runs["visual-1"].config
    said = {
        "accuracy_only": {"reward.visual_weight": 0.0, "judge.path": ""},
        "no_repetition": {"reward.repetition_weight": 0.0},
        "gamma_0.3": {"reward.visual_weight": 0.3},
        "gamma_0.7": {"reward.visual_weight": 0.7},
        "flipped_20": {"judge.flip_probability": 0.2},
    }
    for name, fields in said.items():
        run = runs[f"{name}-1"]
        assert {field: run.config[field] for field in differing(run.config, full)} == fields
        assert run.changes == {"seed": 1, **fields}
    assert differing(runs["visual-3"].config, full) == ["seed"]


def test_a_run_s_command_line(tmp_path):
    (run,) = plan(tmp_path, ["accuracy_only"], [7])
    assert run.arguments == [
        *("--config", str(tmp_path / "small.py"), "--workdir", str(tmp_path / "runs" / "accuracy_only-7")),
        *("--config.seed=7", "--config.reward.visual_weight=0.0", "--config.judge.path="),
    ]


def test_a_variant_that_is_the_full_recipe_has_no_runs_of_its_own(tmp_path):
    names = {run.variant for run in plan(tmp_path, weight=0.7)}
    assert names == {"visual", "accuracy_only", "no_repetition", "gamma_0.3", "flipped_20"}


def test_without_an_evaluation_by_a_checker_nothing_is_planned(tmp_path):
    with pytest.raises(UserError, match=r"config\.evaluation\.checker of .*small\.py is empty"):
        plan(tmp_path, checker="")


def test_a_config_that_cannot_run_is_told_before_anything_does(tmp_path):
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace('"random"', '"nowhere"'))
    with pytest.raises(FileNotFoundError, match=r"config\.model\.path = 'nowhere' does not exist"):
        plan_runs(config, ["visual"], None, tmp_path / "runs", tmp_path / "out")


def test_the_state_of_a_run(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    assert run.state() == NEW
    write_workdir(run)
    assert run.state() == FINISHED
    (run.workdir / "result.json").unlink()
    assert run.state() == BEGUN
    recorded(run)
    assert run.state() == RECORDED


@pytest.mark.parametrize("what", ["record", "workdir"])
def test_what_another_config_made_is_refused_with_what_to_do(what, tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0], weight=0.5)
    recorded(run) if what == "record" else write_workdir(run)
    (run,) = plan(tmp_path, ["visual"], [0], weight=0.6)
    place, option = (run.record, "--out") if what == "record" else (run.workdir, "--runs")
    with pytest.raises(UserError) as raised:
        run.state()
    message = str(raised.value)
    assert message.startswith(f"{place} is of another run: reward.visual_weight is 0.5 there and 0.6 here.")
    assert f"move {place} away or choose another {option}" in message


def test_a_field_that_a_record_does_not_know_yet_makes_no_other_run(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    recorded(run)
    content = json.loads(run.record.read_text())
    del content["run"]["config"]["judge"]["flip_probability"]
    run.record.write_text(json.dumps(content))
    assert run.state() == RECORDED


@pytest.mark.parametrize(("what", "option"), [("record", "--out"), ("workdir", "--runs")])
@pytest.mark.parametrize(("split", "name"), [("train", "data"), ("test", "evaluation")])
def test_another_data_set_at_the_same_path_is_another_run(split, name, what, option, tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    recorded(run) if what == "record" else write_workdir(run)
    (later,) = plan(tmp_path, ["visual"], [0], **{split: "8"})
    with pytest.raises(UserError) as raised:
        later.state()
    message, place = str(raised.value), getattr(run, what)
    there, here = run.hashes[name], later.hashes[name]
    assert message.startswith(f"{place} is of another run: hashes.{name} is {there!r} there and {here!r} here.")
    assert f"choose another {option}; to keep it set config and data back" in message
    (again,) = plan(tmp_path, ["visual"], [0])
    assert again.state() == (RECORDED if what == "record" else FINISHED)


def test_a_checker_that_says_too_little_is_told_before_anything_runs(tmp_path):
    with pytest.raises(UserError, match="has no function reflected, traits"):
        plan(tmp_path, checker="tests.stub_checker")


def test_a_broken_record_is_named(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    run.record.parent.mkdir()
    run.record.write_text("{")
    with pytest.raises(UserError, match=r"visual-0\.json is no JSON"):
        run.state()
