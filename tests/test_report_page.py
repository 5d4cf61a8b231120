"""The whole report of a run that never was: its numbers, its safety, and what it says where something is missing."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.evaluation.files import items_file
from perception_r1_jax.evaluation.items import read_items
from perception_r1_jax.evaluation.mcnemar import mcnemar_exact
from perception_r1_jax.report import make_report
from perception_r1_jax.report.wording import p_value, percent
from tests import report_run
from tests.report_run import read_lines, write_json, write_lines, write_rows, write_run

VOID = {"meta", "img", "br", "wbr", "path", "circle"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A whole run whose judge is hacked near its end."""
    return write_run(tmp_path_factory.mktemp("run"), hacked_from=20)


@pytest.fixture(scope="module")
def page(run) -> str:
    return make_report(run)


@pytest.fixture
def copy(run, tmp_path):
    """A copy to damage; its data stay where they are."""
    return shutil.copytree(run, tmp_path / "mini")


def text_of(page: str) -> str:
    """What a reader sees: no markup, single spaces."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


class Checker(HTMLParser):
    """Collects what a well-formed, self-contained page must not have."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.faults, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("src", "href") if name in given]
        if tag == "script" or any(name.startswith("on") for name in given):
            self.faults.append(f"<{tag}> runs code")
        if tag == "img" and not given.get("alt"):
            self.faults.append("a picture without words")
        if tag == "svg" and not (given.get("aria-label") or given.get("aria-hidden")):
            self.faults.append("a chart without words")
        if tag == "th" and "scope" not in given:
            self.faults.append("a header of nothing")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes something else")


def test_the_page_is_well_formed_accessible_and_needs_nothing_else(page):
    checker = Checker()
    checker.feed(page)
    assert checker.faults == []
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids) > 5
    assert {link for link in checker.links if not link.startswith("data:image/png;base64,")} == {
        f"#{name}" for name in checker.ids
    }
    assert not re.search(r"https?://|@import|url\(", page)


def test_the_same_files_make_the_same_page(run, page):
    assert make_report(run) == page


@pytest.mark.parametrize("measure", ["accuracy", "perception", "probe"])
def test_mcnemar_and_rates_are_those_of_the_files(run, page, measure):
    before, after = (
        {item.problem_id: getattr(item, measure) for item in read_items(items_file(run, "test", step))}
        for step in (0, 24)
    )
    gained = sum(after[name] > value for name, value in before.items())
    lost = sum(after[name] < value for name, value in before.items())
    both = sum(after[name] == value == 1 for name, value in before.items())
    rates = f"{percent(sum(before.values()) / 30)} → {percent(sum(after.values()) / 30)}"
    text = text_of(page)
    tile = text[text.index(f"{measure.capitalize()} ", text.index("What training changed")) :]
    assert rates in tile[: tile.index("significant")]
    p = p_value(mcnemar_exact(gained, lost))
    table = f"{measure.capitalize()}: p = {p} (30 problems) right after wrong after right before {both} {lost} lost "
    assert table + f"wrong before {gained} gained {30 - both - gained - lost}" in text


def test_precision_is_that_of_the_result(run, page):
    result = json.loads((run / "result.json").read_text())
    assert f"{percent(result['precision_before'])} → {percent(result['precision_after'])}" in text_of(page)


def test_facts_newly_stated_and_newly_right_are_those_of_the_result(run, page):
    facts = json.loads((run / "result.json").read_text())["facts"]
    text = text_of(page)
    assert f"Of {facts['needed']} needed facts" in text
    assert re.search(rf"\b{facts['newly_stated']} (is|are) newly stated", text)
    assert re.search(rf"\b{facts['newly_right']} (is|are) newly right", text)


def test_correlations_of_judge_and_checker_in_each_tenth(run, page):
    rows = {f"train/{i}": row for i, row in enumerate(report_run.make_rows(12, 0))}
    judged = [line for line in read_lines(run / "samples.jsonl") if line["verdicts"] is not None]
    text = text_of(page)
    for part in np.array_split(np.arange(1, 25), 10):
        lines = [line for line in judged if line["step"] in part]
        judge = [np.mean(line["verdicts"]) for line in lines]
        checker = [np.mean([fact in line["response"] for fact in rows[line["problem_id"]]["needed"]]) for line in lines]
        pearson = np.corrcoef(judge, checker)[0, 1]
        row = rf" {part[0]}–{part[-1]} (▾ )?([\d.]+) ([\d.]+)% ([\d.]+)% [\d.]+% \d+ \d+ (\d+) "
        mark, shown, *shares, count = re.search(row, text).groups()
        assert (shown, count) == (f"{pearson:.3f}", str(len(lines)))
        assert [float(share) for share in shares] == pytest.approx(
            [100 * np.mean(judge), 100 * np.mean(checker)], abs=0.051
        )
        assert bool(mark) == (f"Where they part: steps {part[0]}–{part[-1]}" in text) == (pearson < 0.9)


def test_cards_follow_their_rule(run, page):
    before, after = (read_items(items_file(run, "test", step)) for step in (0, 24))
    outcomes = [(then.perception, now.perception) for then, now in zip(before, after)]
    text = text_of(page)
    section = text[text.index("Chosen by rule: of each outcome in perception") :]
    for name, outcome in {"gained": (0, 1), "lost": (1, 0), "wrong both times": (0, 0)}.items():
        chosen = [item.problem_id for item, found in zip(before, outcomes) if found == outcome]
        heading = f"Perception {name} ({len(chosen)} problem"
        start = section.index(heading)
        cards = section[start : section.index("Perception ", start + len(heading))]
        assert re.findall(r"test/\d+", cards) == chosen[:2]


def test_what_models_write_is_text(run, copy, tmp_path):
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}</pre>\u202e & \"' \x00"
    first, *rest = read_lines(copy / "samples.jsonl")
    write_lines(copy / "samples.jsonl", [{**first, "response": attack, "total": 9.0, "advantage": 1.0}, *rest])
    path = items_file(copy, "test", 0)
    items = [dataclasses.asdict(item) | {"probe_response": attack} for item in read_items(path)]
    write_lines(path, items)
    page = make_report(copy)
    checker = Checker()
    checker.feed(page)
    assert checker.faults == []
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    assert "{{ 7 * 7 }}" in page


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run\.json"):
        make_report(tmp_path)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("metrics.jsonl", "metrics.jsonl is not there"),
        ("samples.jsonl", "samples.jsonl is not there"),
        ("eval", "A comparison takes two evaluations, eval/test-STEP.jsonl; this run has none."),
        ("eval/test-24.jsonl", "this run has eval/test-0.jsonl."),
        ("result.json", "not recorded"),
    ],
)
def test_what_is_missing_is_said(copy, gone, said):
    path = copy / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    metrics = read_lines(copy / "metrics.jsonl") if (copy / "metrics.jsonl").exists() else []
    write_lines(copy / "metrics.jsonl", [{k: v for k, v in line.items() if "memory" not in k} for line in metrics])
    assert said in text_of(make_report(copy))


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("evaluation", {"split": ""}, "This run was not evaluated"),
        ("evaluation", {"checker": ""}, "This run had no checker beside the judge"),
        ("evaluation", {"checker": "no.such.module"}, "'no.such.module' cannot be imported"),
        ("evaluation", None, "This run was not evaluated"),
        ("data", {"path": "/nowhere"}, "No data at /nowhere"),
        ("data", {"path": "/nowhere"}, "Question and picture: No data at /nowhere"),
    ],
)
def test_a_run_with_less(copy, section, values, said):
    record = json.loads((copy / "run.json").read_text())
    record["config"][section] = None if values is None else record["config"][section] | values
    write_json(copy / "run.json", record)
    assert said in text_of(make_report(copy))


def test_data_that_have_changed_since_the_run_are_neither_shown_nor_compared(tmp_path):
    run = write_run(tmp_path, steps=3, train=6, test=6)
    for split in ("train", "test"):
        write_rows(tmp_path / "data" / f"{split}.parquet", report_run.make_rows(6, 7))
    page = make_report(run)
    said = f"the data at {tmp_path / 'data'} are not those of the run"
    assert f"The problems cannot be read: {said}" in text_of(page)
    assert f"Question and picture: {said}" in text_of(page)
    assert "data:image/png" not in page


def test_fields_that_a_run_does_not_have(copy):
    config = json.loads((copy / "run.json").read_text())["config"]
    del config["evaluation"]["checker"], config["judge"]["flip_probability"]
    write_json(copy / "run.json", {"config": config})
    write_lines(copy / "metrics.jsonl", [{"step": step, "reward/total": 0.5} for step in (1, 2)])
    line = {"step": 1, "problem_id": "train/0", "sample": 0, "response": "so"}
    write_lines(copy / "samples.jsonl", [line])
    for step in (0, 24):
        write_lines(items_file(copy, "test", step), [{"problem_id": "test/0", "response": "so", "accuracy": 1.0}])
    text = text_of(make_report(copy))
    assert "The same at every step: Total 0.5." in text
    assert "The evaluations hold no states of facts" in text
    assert "This run had no checker beside the judge" in text
    assert "Accuracy right both times (1 problem)" in text
    assert "command not recorded" in text


def test_verdicts_that_are_not_as_many_as_the_annotations(copy):
    first, *rest = read_lines(copy / "samples.jsonl")
    first |= {"verdicts": [1.0], "total": 9.0, "advantage": 1.0}
    write_lines(copy / "samples.jsonl", [first, *rest])
    text = text_of(make_report(copy))
    assert "✓ yes" in text
    assert "not read" in text
    assert "1 response, other annotations than the problem's" in text


def test_the_verdict_of_a_judge_that_sees_is_on_no_annotation(copy):
    record = json.loads((copy / "run.json").read_text())
    record["config"]["judge"]["sees"] = True
    write_json(copy / "run.json", record)
    lines = [line | {"verdicts": line["verdicts"] and [1.0]} for line in read_lines(copy / "samples.jsonl")]
    write_lines(copy / "samples.jsonl", lines)
    text = text_of(make_report(copy))
    assert "The judge looked at the pictures and gave each response one verdict" in text
    assert "other annotations than" not in text
    samples = text[text.index("Training samples") :]
    assert "✓ yes" in samples
    assert "not read" not in samples


def test_a_cut_line_is_left_out_and_told(copy):
    with (copy / "samples.jsonl").open("a") as file:
        file.write('{"step": 25, "problem_id": "tr')
    count = len(read_lines(copy / "metrics.jsonl"))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write("not json\n" + json.dumps({"step": 25}) + "\n")
    text = text_of(make_report(copy))
    assert "samples.jsonl : 1 line cut or unreadable (193)" in text
    assert f"metrics.jsonl : 1 line cut or unreadable ({count + 1})" in text
    assert "25 steps of GRPO" in text
