"""Reading a working directory that may be incomplete."""

from __future__ import annotations

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.report.before_after import pair_up
from perception_r1_jax.report.checker import load_checker
from perception_r1_jax.report.run_facts import collect_facts, config_changes
from perception_r1_jax.report.workdir import JsonLines, MissingData, Problems, Workdir
from tests import report_run
from tests.report_run import write_json, write_lines, write_rows


def workdir_of(tmp_path, **config) -> Workdir:
    write_json(tmp_path / "run.json", {"config": config})
    return Workdir.open(tmp_path)


def test_lines_that_cannot_be_read_are_numbered(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 1, "t": "a\xe2\x80\xa8b"}\n[1]\n{"stop": 1}\n\xff\n\n{"step": 2}\n{"step": 3}')
    lines = JsonLines(path, ["step"])
    for _ in range(2):
        assert [line["step"] for line in lines] == [1, 2]
        assert lines.broken == [2, 3, 4, 5, 7]
    assert list(JsonLines(tmp_path / "none.jsonl", [])) == []


def test_run_json_is_what_makes_a_working_directory(tmp_path):
    with pytest.raises(UserError, match="give the working directory of a run"):
        Workdir.open(tmp_path)
    (tmp_path / "run.json").write_text('{"conf')
    with pytest.raises(UserError, match=r"run.json is no JSON"):
        Workdir.open(tmp_path)


def test_settings_by_dotted_name(tmp_path):
    workdir = workdir_of(tmp_path, data={"path": "x"})
    assert workdir.setting("data.path") == "x"
    assert workdir.setting("data.path.more") is None
    assert workdir.setting("evaluation.split") is None


def test_evaluations_are_the_first_and_the_last_of_the_split(tmp_path):
    workdir = workdir_of(tmp_path, evaluation={"split": "val"})
    (tmp_path / "eval").mkdir()
    for name in ("val-0", "val-9", "val-10", "val-hard-11", "test-12"):
        write_lines(tmp_path / "eval" / f"{name}.jsonl", [{"problem_id": "a", "response": name, "accuracy": 1.0}])
    evaluations = pair_up(workdir)
    assert evaluations.last == 10
    assert [item.response for item in evaluations.items[0]] == ["val-0", "val-10"]


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ('{"problem_id": "b", "response": "x"}\n', "not of the same problems"),
        ('{"problem_id": "a"', "cannot be used"),
        ('{"unknown": 1}\n', "cannot be used"),
    ],
)
def test_evaluations_that_cannot_be_compared(tmp_path, last, said):
    workdir = workdir_of(tmp_path, evaluation={"split": "val"})
    (tmp_path / "eval").mkdir()
    write_lines(tmp_path / "eval" / "val-0.jsonl", [{"problem_id": "a", "response": "x"}])
    (tmp_path / "eval" / "val-5.jsonl").write_text(last)
    with pytest.raises(MissingData, match=said):
        pair_up(workdir)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"path": "/nowhere", "split": "train"}, "No data at /nowhere"),
        ({}, "names no data"),
        ({"path": "geometry_world", "split": ""}, "names no data"),
    ],
)
def test_problems_that_have_gone(data, said, tmp_path):
    assert said in Problems.load(workdir_of(tmp_path, data=data), "data").missing


def test_problems_are_those_of_the_run_or_none(tmp_path):
    workdir = Workdir.open(report_run.write_run(tmp_path, steps=1, train=3, test=4))
    assert [len(Problems.load(workdir, section).by_id) for section in ("data", "evaluation")] == [3, 4]
    path = tmp_path / "data"
    for split in ("train", "test"):  # other problems under the same ids
        write_rows(path / f"{split}.parquet", report_run.make_rows(4, 7))
    for section in ("data", "evaluation"):
        problems = Problems.load(workdir, section)
        assert (problems.by_id, problems.missing) == ({}, f"the data at {path} are not those of the run")


def test_of_an_evaluation_the_problems_that_were_asked(tmp_path):
    workdir = Workdir.open(report_run.write_run(tmp_path, steps=1, train=3, test=4))
    write_rows(tmp_path / "data" / "test.parquet", report_run.make_rows(6, 1))  # the same four and two more
    assert list(Problems.load(workdir, "evaluation").by_id) == [f"test/{i}" for i in range(4)]


def test_a_checker_must_say_what_an_ideal_judge_would(tmp_path):
    assert load_checker(workdir_of(tmp_path, evaluation={"checker": report_run.CHECKER})) is report_run
    for name, said in (
        ("", "had no checker"),
        ("json", "has no function reflected"),
        ("no.such", "cannot be imported"),
    ):
        with pytest.raises(MissingData, match=said):
            load_checker(workdir_of(tmp_path, evaluation={"checker": name}))


def test_config_changes(tmp_path):
    changes = config_changes({"steps": 60, "new": {"field": 1}, "seed": 1})
    assert changes["steps"] == (275, 60)
    assert changes["new.field"] == (None, 1)
    assert changes["data.path"][1] is None
    assert "seed" not in changes


def test_stages_sum_to_the_whole(tmp_path):
    write_json(tmp_path / "result.json", {"seconds": 30.0, "evaluation_before": {"seconds": 4.0}})
    times = {
        "time/data": 1.0,
        "time/judge_hidden": 5.0,
        "time/judge_exposed": 0.5,
        "time/train": 8.0,
        "time/step": 10.0,
    }
    lines = [{"step": s, **times, "rollout/tokens": 7} for s in (1, 2)]
    facts = collect_facts(workdir_of(tmp_path, rollout={"prompts_per_step": 3, "samples_per_prompt": 4}), lines)
    assert {stage.name: stage.seconds for stage in facts.stages} == {
        "data": 2.0,
        "train": 16.0,
        "rest of the steps": 2.0,
        "evaluations": 4.0,
        "preparation": 6.0,
    }
    assert sum(stage.share for stage in facts.stages) == pytest.approx(1)
    assert facts.judging == {"judging, hidden": 10.0, "judging, exposed": 1.0}
    assert (facts.steps, facts.responses, facts.tokens, facts.peak_bytes) == (2, 24, 14, None)
