"""The authors' parquet, written here in every shape its pictures come in."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perception_r1_jax.data import DataError, load_problems
from perception_r1_jax.data.geometry_world import make_problem

PICTURES = [make_problem(index).problem().images[0] for index in range(3)]
KEY_INFO = "<info1>The length of AB is $3$.</info1>\n<info2>B lies on AC.</info2>"


def _row(**changes) -> dict:
    row = {"problem": "<image>Find x.", "answer": "5", "images": PICTURES[:1], "visual_key_info": KEY_INFO}
    return row | {"source": "here"} | changes


def _write(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_bytes_and_rows_of_several_groups(tmp_path):
    rows = [_row(answer=str(number), images=[picture]) for number, picture in enumerate(PICTURES)]
    problems, report = load_problems(_write(tmp_path / "geo.parquet", rows))
    assert [problem.problem_id for problem in problems] == ["geo/0", "geo/1", "geo/2"]
    assert [problem.images for problem in problems] == [(picture,) for picture in PICTURES]
    assert [problem.answer for problem in problems] == ["0", "1", "2"]
    assert problems[0].question == "<image>Find x."
    assert problems[0].annotations == ("The length of AB is $3$.", "B lies on AC.")
    assert problems[0].row["source"] == "here"
    assert (report.rows, report.annotations) == (3, 6)


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    (problem,), _ = load_problems(_write(tmp_path / "geo.parquet", [_row(images=["a.png"])]))
    assert problem.images == (tmp_path / "a.png",)


def test_hugging_face_dicts_of_bytes_or_path(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    images = [{"bytes": PICTURES[1], "path": "gone.png"}, {"bytes": None, "path": "a.png"}]
    rows = [_row(problem="<image>, <image>: Find x.", images=images)]
    (problem,), _ = load_problems(_write(tmp_path / "geo.parquet", rows))
    assert problem.images == (PICTURES[1], tmp_path / "a.png")


def test_null_key_info_and_a_text_only_row(tmp_path):
    rows = [_row(), _row(problem="What is 2 + 3?", images=None, visual_key_info=None)]
    problems, report = load_problems(_write(tmp_path / "geo.parquet", rows))
    assert (problems[1].images, problems[1].annotations) == ((), ())
    assert report.without_annotations == 1


def test_folder_of_shards(tmp_path):
    for shard in range(2):
        _write(tmp_path / f"train-0000{shard}-of-00002.parquet", [_row()])
    _write(tmp_path / "test-00000-of-00001.parquet", [_row()])
    problems, _ = load_problems(tmp_path, "train")
    assert [problem.problem_id for problem in problems] == ["train-00000-of-00002/0", "train-00001-of-00002/0"]


@pytest.mark.parametrize("column", ["problem", "answer", "images", "visual_key_info"])
def test_missing_column_is_named_with_the_file_and_what_it_has(tmp_path, column):
    row = _row()
    del row[column]
    path = _write(tmp_path / "geo.parquet", [row])
    with pytest.raises(DataError) as error:
        load_problems(path)
    assert f"{path} has no column '{column}'; it has " in str(error.value)
    assert "'source'" in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "kind"),
    [
        ("problem", 5, "int64"),
        ("problem", b"bytes", "binary"),
        ("answer", ["5"], "list<element: string>"),
        ("answer", True, "bool"),
        ("images", "a.png", "string"),
        ("images", PICTURES[0], "binary"),
        ("images", {"bytes": PICTURES[0], "path": None}, "struct<bytes: binary, path: null>"),
        ("images", [{"url": "a"}], "list<element: struct<url: string>>"),
        ("images", [5], "list<element: int64>"),
        ("visual_key_info", ["B lies on AC."], "list<element: string>"),
    ],
)
def test_column_of_another_type_is_named_with_what_is_expected(tmp_path, column, value, kind):
    path = _write(tmp_path / "geo.parquet", [_row(**{column: value})])
    with pytest.raises(DataError) as error:
        load_problems(path)
    assert f"{path}: column '{column}' is {kind}, expected " in str(error.value)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("answer", pa.array([5])),
        ("answer", pa.array([5], pa.float64())),
        ("problem", pa.array(["<image>Find x."], pa.large_string())),
        ("visual_key_info", pa.array([KEY_INFO]).dictionary_encode()),
        ("visual_key_info", pa.array([None])),
        ("images", pa.array([PICTURES[:1]], pa.large_list(pa.large_binary()))),
    ],
)
def test_column_types_that_hold_the_same_are_read(tmp_path, column, values):
    table = pa.Table.from_pylist([_row()])
    table = table.set_column(table.schema.names.index(column), column, values)
    pq.write_table(table, tmp_path / "geo.parquet")
    (problem,), _ = load_problems(tmp_path / "geo.parquet")
    assert problem.question == "<image>Find x."
    assert float(problem.answer) == 5
    assert problem.images == (PICTURES[0],)


def test_a_row_that_is_not_utf8_costs_no_other(tmp_path):
    offsets, content = pa.array([0, 5, 7, 12], pa.int32()).buffers()[1], pa.py_buffer(b"Find \xff\xfeFind ")
    table = pa.Table.from_pylist([_row()] * 3)
    questions = pa.Array.from_buffers(pa.string(), 3, [None, offsets, content])
    pq.write_table(table.set_column(0, "problem", questions), tmp_path / "geo.parquet")
    problems, report = load_problems(tmp_path / "geo.parquet")
    assert [problem.problem_id for problem in problems] == ["geo/0", "geo/2"]
    assert "geo/1" in report.skipped["unreadable row"][0]


@pytest.mark.parametrize(
    ("changes", "reason", "named"),
    [
        ({"answer": None}, "empty answer", "geo/1"),
        ({"problem": None}, "empty question", "geo/1"),
        ({"problem": "<image><image>Find x."}, "pictures and markers differ in number", "geo/1"),
        ({"problem": "<image>Find x.", "images": []}, "pictures and markers differ in number", "geo/1"),
        ({"images": [b"no picture"]}, "corrupt image", "geo/1"),
        ({"images": [None]}, "absent image", "geo/1"),
        ({"images": [b""]}, "corrupt image", "geo/1"),
        ({"visual_key_info": "<info2>late</info2>"}, "malformed visual_key_info", "<info2>late"),
    ],
)
def test_bad_row_is_skipped_counted_and_named(tmp_path, changes, reason, named):
    problems, report = load_problems(_write(tmp_path / "geo.parquet", [_row(), _row(**changes)]))
    assert [problem.problem_id for problem in problems] == ["geo/0"]
    assert list(report.skipped) == [reason]
    assert "geo/1" in report.skipped[reason][0]
    assert named in report.skipped[reason][0]


def test_missing_number_is_an_empty_answer(tmp_path):
    rows = [_row(answer=5.0), _row(answer=float("nan"))]
    problems, report = load_problems(_write(tmp_path / "geo.parquet", rows))
    assert [problem.answer for problem in problems] == ["5.0"]
    assert "geo/1" in report.skipped["empty answer"][0]


def test_file_that_is_no_parquet(tmp_path):
    path = tmp_path / "geo.parquet"
    path.write_text("nothing of the kind")
    with pytest.raises(DataError, match=r"geo\.parquet cannot be read as parquet"):
        load_problems(path)
