"""What the tables and charts say of records whose outcome is known."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from perception_r1_jax.claim.charts import write_charts
from perception_r1_jax.claim.comparison import compare, pair_seeds
from perception_r1_jax.claim.families import group
from perception_r1_jax.claim.record import read_records
from perception_r1_jax.claim.table import count_significant, write_table
from tests.claim_run import plan, recorded

RATES = {"visual": 0.85, "accuracy_only": 0.5}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """All records but those of one variant, with a config whose weight is that of gamma_0.7."""
    folder = tmp_path_factory.mktemp("claim")
    for run in plan(folder, weight=0.7):
        if run.variant != "no_repetition":
            recorded(run, RATES.get(run.variant, 0.7))
    return folder / "out"


@pytest.fixture(scope="module")
def text(out):
    return write_table(out)


def cells(text: str, title: str, row: str) -> list[str]:
    """The cells of a table's row, by a word of its section's title and its first cell."""
    section = next(part for part in text.split("\n## ") if title in part.splitlines()[0])
    return [
        cell.strip()
        for cell in next(line for line in section.splitlines() if line.startswith(f"| {row} |")).split("|")[2:-1]
    ]


def test_the_head_says_what_was_run(text, out):
    assert (out / "table.md").read_text() == text
    assert "14 runs of 20 steps; each evaluated on 60 problems of the split `test`" in text
    assert "(median; 8 min 20 s to 8 min 24 s) and at most 2.0 GB" in text
    assert "Python 3.11.7, jax 0.10.2, commit 0123456789." in text
    assert cells(text, "numbers", "`visual`")[1] == "0, 1, 2, 3, 4"
    assert cells(text, "numbers", "`no_repetition`")[1] == "no run yet"


def test_runs_that_began_otherwise_are_named(text, tmp_path):
    assert "Before the first step, every problem came out alike in all runs." in text
    for run in plan(tmp_path, ["visual"], [0, 1]):
        recorded(run)
    (run,) = plan(tmp_path, ["visual"], [1])
    content = json.loads(run.record.read_text())
    content["before"]["accuracy"] = content["before"]["accuracy"].translate(str.maketrans("01", "10"))
    run.record.write_text(json.dumps(content))
    assert "problems came out otherwise in `visual-1` than in `visual-0`" in write_table(tmp_path / "out")


def test_a_variant_that_is_the_full_recipe_is_said_to_be(text):
    assert cells(text, "numbers", "`gamma_0.7`")[1] == "as `visual`"
    assert "this is `visual`" in cells(text, "numbers", "`gamma_0.7`")[0]
    assert "`gamma_0.7`" not in text.split("## Other variants")[1]


def test_the_claim(text, out):
    found = compare(pair_seeds(read_records(out), "visual", "accuracy_only"), "perception")
    row = cells(text, "With and without", "perception")
    assert row[:3] == [f"{100 * found.ours:.1f}%", f"{100 * found.theirs:.1f}%", f"**+{100 * found.mean:.1f}**"]
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in found.seed_interval)
    assert row[3] == f"{low} to {high}"
    assert row[6].count(",") == 4


def test_each_run_with_its_test(text, out):
    record = next(record for record in read_records(out) if record.name == "visual-2")
    test = record.result["mcnemar_perception"]
    section = text.split("| perception | before")[1].split("\n\n")[0]
    row = next(line for line in section.splitlines() if "`visual-2`" in line)
    assert f"| {test['gained']} | {test['lost']} |" in row
    assert (
        f"| {100 * record.result['perception_before']:.1f}% | {100 * record.result['perception_after']:.1f}% |" in row
    )


def test_seeds_with_a_significant_rise_are_counted(text, out):
    records = read_records(out)
    tests = [record.result["mcnemar_perception"] for record in records if record.variant == "visual"]
    assert count_significant(records, "visual") == f"{sum(test['p'] < 0.05 for test in tests)} of 5"
    assert "in 5 of 5 seeds of `visual`" in text
    fallen = [
        r.result["mcnemar_perception"] | {"gained": 0, "lost": 30, "p": 1e-9} for r in records if r.variant == "visual"
    ]
    for record, test in zip([record for record in records if record.variant == "visual"], fallen):
        record.result["mcnemar_perception"] = test
    assert count_significant(records, "visual") == "0 of 5"  # a fall is no rise


def test_other_variants_stand_beside_the_same_seeds(text, out):
    records = read_records(out)
    mean = {
        name: sum(record.result["accuracy_after"] for record in records if record.variant == name and record.seed < 2)
        / 2
        for name in ("visual", "flipped_20")
    }
    seeds, accuracy, *_ = cells(text, "Other variants", "`flipped_20`")
    assert seeds == "0, 1"
    assert re.fullmatch(rf"{100 * mean['flipped_20']:.1f}% \([+−][\d.]+\)", accuracy)
    assert f"{100 * abs(mean['flipped_20'] - mean['visual']):.1f}" in accuracy


def test_needed_facts_by_state(text, out):
    right, misread, absent, *changes = cells(text, "Seeing", "`visual`")
    records = [record for record in read_records(out) if record.variant == "visual"]
    share = sum(record.after.states()["right"] for record in records) / 5
    assert right.endswith(f"→ {100 * share:.1f}%")
    assert "→" in misread
    assert "→" in absent
    assert (
        changes[0].partition(" ")[0] == f"{sum(record.result['facts']['newly_stated'] for record in records) / 5:.0f}"
    )


def test_stated_facts_and_responses_that_look_first(text, out):
    record = next(record for record in read_records(out) if record.name == "visual-2")
    stated, share, look = cells(text, "How much", "`visual-2`")
    assert stated == f"{record.before.stated} → {record.after.stated}" == "120 → 120"
    assert (share, look) == ("1.00 → 1.00", "15 → 15")
    assert "the solutions need 120." in text


def test_families_sum_to_the_whole(text, out):
    records = read_records(out)
    for record in records:
        families = group(record.families, record.after)
        assert list(families) == ["triangles", "circles", "all"]
        assert [len(seen) for seen in families.values()] == [40, 20, 60]
        perceived = [sum(response.perceived for response in seen) for seen in families.values()]
        assert perceived[0] + perceived[1] == perceived[2] == round(60 * record.result["perception_after"])
    shares = [
        np.mean([record.result[f"perception_{when}"] for record in records if record.variant == name])
        for name, when in (("visual", "before"), ("visual", "after"), ("accuracy_only", "after"))
    ]
    assert cells(text, "Families", "all")[:4] == ["60", *(f"{100 * share:.1f}%" for share in shares)]
    assert cells(text, "Families", "circles")[0] == "20"


def test_what_is_stated_wrongly(text, out):
    """Of two problems one has wrong lengths, the other wrong parallels, if anything."""
    runs = [record for record in read_records(out) if record.variant == "visual"]
    numbers = [record.after.facts_wrong.split(" ") for record in runs]
    lengths = sum(number != "0" for wrong in numbers for number in wrong[::2]) / len(runs)
    _, before, after, _, *alone = cells(text, "Wrong facts", "all | length")
    assert float(after) == pytest.approx(lengths)
    assert alone[:2] == [before, after]
    assert "| circles | parallel |" in text
    assert "| circles | angle |" not in text


def test_where_judge_and_checker_part_is_bold(text):
    least, *tenths = cells(text, "Judge", "`visual-0`")
    assert len(tenths) == 10
    assert tenths[:5] == ["1.000"] * 5
    assert all(cell.startswith("**") for cell in tenths[5:])
    assert least in tenths
    assert "`accuracy_only-0`" not in text.split("## Judge")[1]


def test_a_single_run_makes_a_table_too(tmp_path):
    (run,) = plan(tmp_path, ["visual"], [0])
    recorded(run)
    text = write_table(tmp_path / "out")
    assert "1 run of 20 steps" in text
    assert "With and without" not in text
    assert [path.name for path in write_charts(tmp_path / "out")] == ["runs.svg", "curves.svg"]


def test_charts_are_small_and_well_formed(out):
    paths = write_charts(out)
    assert [path.name for path in paths] == ["effect.svg", "runs.svg", "curves.svg"]
    for path in paths:
        root = ElementTree.parse(path).getroot()
        assert path.stat().st_size < 30_000
        width, height = (float(root.get(name)) for name in ("width", "height"))
        for shape in root.iter():
            for name, limit in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                if shape.get(name):
                    assert 0 <= float(shape.get(name)) <= limit, (path.name, shape.attrib)


def test_the_chart_of_the_effect_has_a_dot_for_each_seed_and_measure(out):
    write_charts(out)
    root = ElementTree.parse(out / "effect.svg").getroot()
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 4 * 5
