"""`scripts/report.py` as a user starts it."""

from __future__ import annotations

import json

import pytest

from scripts import report
from tests.report_run import read_lines, write_lines, write_run


def test_a_report_is_written_beside_the_run(tmp_path, capsys):
    run = write_run(tmp_path, steps=2, train=4, test=4)
    first, *rest = read_lines(run / "samples.jsonl")
    write_lines(
        run / "samples.jsonl", [first | {"response": "half \ud800 of a pair", "total": 9.0, "advantage": 1.0}, *rest]
    )
    assert report.main([str(run)]) == 0
    page = (run / "report.html").read_bytes()
    assert page.startswith(b"<!DOCTYPE html>")
    assert "half &#55296; of a pair" in page.decode()
    assert "report.html" in capsys.readouterr().out
    assert report.main([str(run), "--out", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_bytes() == page


def test_what_is_no_working_directory(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "--out", str(tmp_path / "none" / "x.html")]):
        with pytest.raises(SystemExit) as ended:
            report.main(arguments)
        assert ended.value.code == 2
    assert "none" in capsys.readouterr().err


def test_a_damaged_result_is_named(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    (tmp_path / "result.json").write_text("{")
    assert report.main([str(tmp_path)]) == 2
    assert "result.json is no JSON" in capsys.readouterr().err
