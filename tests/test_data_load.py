"""Which source a path leads to, and what is said where it leads to none."""

from __future__ import annotations

import pytest

from perception_r1_jax.data import DataError, ScanReport, load_problems


def test_the_world_by_its_name():
    problems, report = load_problems("geometry_world", "val")
    assert len(problems) == report.rows == 400
    assert problems[0].problem_id == "world-0/val/0"
    assert report.summary().startswith("geometry_world (val): 400 rows read, 400 problems kept")


def test_missing_path_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"No data at .*nowhere\. Set data\.path"):
        load_problems(tmp_path / "nowhere")


def test_one_file_of_a_folder_says_what_to_give_instead(tmp_path):
    (tmp_path / "val.jsonl").write_text("{}")
    with pytest.raises(DataError, match=rf"Set data\.path to {tmp_path} and data\.split to 'val'"):
        load_problems(tmp_path / "val.jsonl")


def test_folder_without_the_split_says_what_it_needs(tmp_path):
    with pytest.raises(DataError, match=r"no folder with dev\.jsonl or dev\*\.parquet"):
        load_problems(tmp_path, "dev")


def test_a_split_that_is_not_there_is_told_with_those_that_are_and_the_field(tmp_path):
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.jsonl", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError, match=r"no tets\.jsonl or tets\*\.parquet\. Set evaluation\.split to one of test, train"
    ):
        load_problems(tmp_path, "tets", "evaluation.split")
    with pytest.raises(DataError, match=r"no split 'dev'; set data\.split to one of train, val, test"):
        load_problems("geometry_world", "dev")


def test_summary_names_the_first_rows_and_counts_the_rest():
    report = ScanReport("x", rows=9, kept=2, skipped={"empty answer": [f"row {k}" for k in range(7)]})
    assert "skipped, empty answer: 7 (row 0; row 1; row 2; row 3; row 4; and 2 more)" in report.summary()
