"""`scripts/score.py` on a file with good, failing and unreadable lines."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.judge.verdicts import Judgement

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "score.py"
FORMATTED = "<think>\nx\n</think>\n<answer>\n\\boxed{5}\n</answer>"
FACTS = ["AB is 3", "BC is 4"]
ROWS = [
    {"response": FORMATTED, "answer": "5", "source": "ours"},
    {"response": r"\boxed{9^{9^{9^{9}}}}", "answer": "5"},
    {"response": "5", "answer": "5", "annotations": FACTS, "judge_output": "<info1>1</info1>\n<info2>0</info2>"},
    {"response": "5", "answer": "5", "annotations": FACTS, "judge_output": "<info1>1</info1>"},
    {"response": "word " * 21 + "\ud800", "answer": "5", "annotations": FACTS},
    {"response": "5", "answer": ""},
]
ADDED = ("format", "accuracy", "repetition", "visual", "total", "judge_status")
DEFAULT = [
    (1.0, 1.0, 0.0, 0.0, 1.0, "none"),
    (0.0, None, 0.0, 0.0, None, "none"),
    (0.0, 1.0, 0.0, 0.5, 1.25, "ok"),
    (0.0, 1.0, 0.0, None, None, "missing"),
    (0.0, 0.0, -2 / 3, None, -2 / 3, "none"),
    (0.0, None, 0.0, 0.0, None, "none"),
]
PAPER = [
    DEFAULT[0],
    (0.0, 0.0, 0.0, 0.0, 0.0, "none"),
    (0.0, 1.0, 0.0, 0.5, 1.25, "ok"),
    (0.0, 1.0, 0.0, 1.0, 1.6, "ok"),
    DEFAULT[4],
    (0.0, 0.0, 0.0, 0.0, 0.0, "none"),
]


JUDGE = {
    "prompt": "",
    "mode": "constrained",
    "max_thought_tokens": 0,
    "weights_memory": 0.7,
    "cache_memory": 0.2,
    "fidelity": "default",
}
"""How a judge in a folder is loaded unless told otherwise."""


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("score_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script, tmp_path, lines, *options):
    source, target = tmp_path / "responses.jsonl", tmp_path / "scores.jsonl"
    source.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    code = script.main(["--input", str(source), "--output", str(target), "--deadline_seconds", "2", *options])
    return code, [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.parametrize(("fidelity", "expected"), [("default", DEFAULT), ("paper", PAPER)])
def test_scores(script, tmp_path, fidelity, expected):
    code, rows = run(script, tmp_path, ROWS, "--fidelity", fidelity)
    assert code == 0
    for row, source, values in zip(rows, ROWS, expected, strict=True):
        assert {name: row[name] for name in source} == source
        assert tuple(row[name] for name in ADDED) == pytest.approx(values, abs=2e-6)


def test_lines_that_cannot_be_read_are_named_and_counted(script, tmp_path, capsys):
    bad = [
        (b"not json", "Expecting value"),
        (b"\xff\xfe\x00", "decode"),
        (b"[" * 100_000, ""),
        ([1, 2], "a list, not a JSON object"),
        ({"answer": "5"}, "'response' is missing"),
        ({"response": "5"}, "'answer' is missing"),
        ({"response": None, "answer": "5"}, "'response' is None, not a text"),
        ({"response": "5", "answer": 5}, "'answer' is 5, not a text"),
        ({"response": "5", "answer": "5", "annotations": "AB is 3"}, "not a list of texts"),
        ({"response": "5", "answer": "5", "judge_output": "<info1>1</info1>"}, "needs the 'annotations'"),
    ]
    code, rows = run(script, tmp_path, [ROWS[0], b"", *(line for line, _ in bad), ROWS[0]])
    assert code == 1
    assert [row["line"] for row in rows[1:-1]] == list(range(3, 3 + len(bad)))
    assert all(reason in row["error"] for row, (_, reason) in zip(rows[1:-1], bad, strict=True))
    assert rows[0] == rows[-1]
    assert rows[0]["total"] == 1.0
    messages = capsys.readouterr().err
    assert "line 8: the field 'answer' is missing" in messages
    assert "bad lines 10" in messages


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {}),
        (["--judge_mode", "free", "--judge_prompt", "words.json"], {"mode": "free", "prompt": "words.json"}),
        (
            ["--judge_max_thought_tokens", "9", "--judge_weights_memory", "0.6"],
            {"max_thought_tokens": 9, "weights_memory": 0.6},
        ),
        (["--fidelity", "paper"], {"mode": "free", "fidelity": "paper"}),
    ],
)
def test_the_judge_in_a_folder_is_as_the_options_say(script, tmp_path, monkeypatch, options, fields):
    from perception_r1_jax.judge import on_mesh

    def load_judge(path, **named):
        assert (path, named) == (str(tmp_path), JUDGE | fields)
        raise UserError("enough")

    monkeypatch.setattr(on_mesh, "load_judge", load_judge)
    with pytest.raises(SystemExit) as stop:
        run(script, tmp_path, [], "--judge", str(tmp_path), *options)
    assert stop.value.code == 2


def test_a_judge_is_asked_where_no_output_is_recorded(script, tmp_path, monkeypatch):
    asked = []

    def judge(problems):
        asked.extend(problem.problem_id for problem in problems)
        return [Judgement((1.0, 1.0), 2, 2, "ok") if p.annotations else Judgement(None, 0, 0, "none") for p in problems]

    monkeypatch.setattr(script, "_load_judge", lambda *_: judge)
    _, rows = run(script, tmp_path, [ROWS[0], ROWS[2], ROWS[4]], "--judge", str(tmp_path))
    assert asked == ["line 1", "line 3"]
    assert [(row["visual"], row["judge_status"]) for row in rows] == [(0.0, "none"), (0.5, "ok"), (1.0, "ok")]


def test_an_output_is_whole_or_the_one_from_before(script, tmp_path, monkeypatch):
    def judge(problems):
        if problems[0].problem_id == "line 2":
            raise KeyboardInterrupt
        return [Judgement(None, 0, 0, "none") for _ in problems]

    monkeypatch.setattr(script, "_load_judge", lambda *_: judge)
    monkeypatch.setattr(script, "LINES_AT_ONCE", 1)
    (tmp_path / "scores.jsonl").write_text("the one from before")
    with pytest.raises(SystemExit, match=r"^stopped; .*scores\.jsonl is as it was\.$"):
        run(script, tmp_path, [ROWS[0]] * 3, "--judge", str(tmp_path))
    assert (tmp_path / "scores.jsonl").read_text() == "the one from before"
    run(script, tmp_path, [ROWS[0]])
    assert {path.name for path in tmp_path.iterdir()} == {"responses.jsonl", "scores.jsonl"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input", "absent.jsonl", "--output", "out.jsonl"], "absent.jsonl: no such file"),
        (["--input", "in.jsonl", "--output", "in.jsonl"], "is the input file"),
        (["--input", "in.jsonl", "--output", "no/out.jsonl"], "--output no/out.jsonl: name a file in a folder that"),
        (["--input", "in.jsonl", "--output", "."], "--output .: name a file in a folder that exists"),
        (["--input", "in.jsonl", "--output", "out.jsonl", "--judge", "absent"], "--judge absent: no such folder"),
        (["--input", "in.jsonl", "--output", "out.jsonl", "--judge", "http://"], "give the address of a server"),
        (["--input", "in.jsonl", "--output", "out.jsonl", "--workers", "0"], "must be positive"),
        (["--input", "in.jsonl", "--output", "out.jsonl", "--judge_weights_memory", "0.9"], "0.9: must be above 0 and"),
    ],
)
def test_a_wrong_command_line_is_explained(script, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text("")
    with pytest.raises(SystemExit) as stop:
        script.main(options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_as_a_command_from_anywhere(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    command = [sys.executable, str(SCRIPT), "--input", "in.jsonl", "--output", "out.jsonl", "--judge", "none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.jsonl").read_text())["total"] == 1.0
