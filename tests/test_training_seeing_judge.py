"""A run whose judge sees: it judges what has a picture, annotations or not, and every response has one verdict."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perception_r1_jax.errors import UserError
from perception_r1_jax.training import setup
from perception_r1_jax.training.metrics import read_lines
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests.parity import drawing
from tests.training_run import one_device_mesh, small_config, train

PICTURES = {0: [(112, 84)], 1: [(84, 112), (56, 84)], 2: [], 3: [(448, 448)]}
"""Sides of the pictures of each problem. The last problem has annotations too, and a picture above the limit of pixels;
as it is it would take 256 tokens, which go not into the judge's prompt."""
LIMITS = {"model.max_pixels": 16 * 28 * 28, "judge.max_prompt_tokens": 256}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(setup, "make_mesh", one_device_mesh)


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "problem": f"Question {number}: <image> how long is AB?" if len(sizes) == 1 else f"Question {number}?",
            "answer": "5",
            "images": [drawing(*size, seed=number) for size in sizes],
            "visual_key_info": "<info1>AB = 5</info1>\n<info2>BC = 6</info2>" if number == 3 else None,
        }
        for number, sizes in PICTURES.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "problems.parquet")
    return tmp_path / "problems.parquet"


def config_for(data, **fields):
    """Two steps, judged in few words."""
    prompt = data.parent / "prompt.json"
    prompt.write_text(json.dumps({"system": "Look.", "user": "Problem:\n{question}\nText:\n{response}\nVerdict:"}))
    judge = {"judge.sees": True, "judge.prompt": str(prompt)}
    return small_config(**{"data.path": str(data), "steps": 2, **judge, **LIMITS, **fields})


def test_a_run_is_judged_by_the_pictures(data, tmp_path):
    train(config_for(data), tmp_path / "run")
    samples = read_lines(tmp_path / "run/samples.jsonl")
    metrics = read_lines(tmp_path / "run/metrics.jsonl")
    assert {line["problem_id"] for line in samples} == {f"problems/{number}" for number in PICTURES}
    for line in samples:
        if line["problem_id"] == "problems/2":
            assert (line["judge_status"], line["verdicts"], line["visual"]) == ("none", None, None)
        else:
            assert line["judge_status"] == "ok"
            assert line["verdicts"] in ([0.0], [1.0])
            assert line["visual"] == line["verdicts"][0]
    for line in metrics:
        drawn = [sample for sample in samples if sample["step"] == line["step"]]
        for status in ("ok", "none"):
            assert line.get(f"judge/{status}", 0) == sum(sample["judge_status"] == status for sample in drawn)
        assert line["judge/failure_rate"] == 0
        assert line["reward/visual"] is not None
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["config"]["judge"]["sees"] is True


def test_a_model_of_text_alone_cannot_be_such_a_judge(data, tmp_path):
    folder = write_random_checkpoint(tmp_path / "text", "qwen2")
    with pytest.raises(UserError, match=r"a qwen2 model, which reads texts alone.*Give a Qwen2\.5-VL model, or set"):
        train(config_for(data, **{"judge.path": str(folder)}), tmp_path / "run")
