"""`run.json`, `result.json`, and hashes that tell inputs apart."""

from __future__ import annotations

import dataclasses
import json

import jax
import pytest

from perception_r1_jax.config import default_config
from perception_r1_jax.evaluation.compare import result_fields
from perception_r1_jax.records import Problem
from perception_r1_jax.training.run_record import (
    EDGE_BYTES,
    hash_model,
    hash_problems,
    hash_texts,
    make_record,
    peak_bytes_of,
    peak_rss_bytes,
    write_record,
    write_result,
)

PROBLEM = Problem("1", "How long?", (b"picture",), "5", ("AB is 3",))


def test_a_run_is_recorded(tmp_path):
    config = default_config()
    config.rollout.prompt_buckets = (64, 128)
    write_record(tmp_path, make_record(config, data="d", policy="p"))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["rollout"]["prompt_buckets"] == [64, 128]
    assert record["config"]["format_instruction"] == config.format_instruction
    assert record["hashes"] == {"data": "d", "policy": "p"}
    assert record["versions"]["jax"] == jax.__version__
    assert len(record["devices"]) == len(jax.devices())
    assert record["commit"] is None or len(record["commit"]) == 40


def test_a_result_has_all_fields_null_where_there_is_no_data(tmp_path):
    rewards = {"reward/total": 0.5, "judge/failure_rate": float("nan")}
    result = write_result(tmp_path, result_fields(None, None), rewards=rewards, seconds=12.345, peak_bytes=7)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    kinds = ("accuracy", "perception", "probe")
    empty = {f"{kind}_{when}" for kind in (*kinds, "precision", "evaluation") for when in ("before", "after")}
    empty |= {f"{what}_{kind}" for kind in kinds for what in ("change", "mcnemar")} | {"facts"}
    assert {name for name, value in result.items() if value is None} == empty
    assert set(result) == {*empty, "rewards", "seconds", "peak_rss_bytes"}
    assert (result["rewards"], result["seconds"], result["peak_rss_bytes"]) == (
        {"reward/total": 0.5, "judge/failure_rate": None},
        12.3,
        7,
    )


def test_memory_is_in_bytes():
    assert 2**26 < peak_rss_bytes() < 2**38  # a Python with jax takes more than 64 MB


def test_memory_of_a_run_is_that_of_its_largest_process():
    assert peak_bytes_of([]) == peak_rss_bytes()
    lines = [{"memory/peak_rss_gib": gib} for gib in (0.001, (2**39 + 1) / 2**30, 0.002)]
    assert peak_bytes_of(lines) == 2**39 + 1


def test_a_hash_of_texts_knows_where_one_ends():
    assert hash_texts(["ab", "c"]) != hash_texts(["a", "bc"])
    assert hash_texts(["a", "b"]) != hash_texts(["b", "a"])
    assert hash_texts(["\ud800"]) != hash_texts(["?"])
    assert hash_texts(iter(["a", "b"])) == hash_texts(["a", "b"])


@pytest.mark.parametrize(
    "change",
    [{"problem_id": "2"}, {"question": "?"}, {"answer": "6"}, {"annotations": ()}],
    ids=lambda c: next(iter(c)),
)
def test_a_hash_of_problems_sees_every_change(change):
    assert hash_problems([PROBLEM]) == hash_problems([dataclasses.replace(PROBLEM)])
    assert hash_problems([PROBLEM]) != hash_problems([dataclasses.replace(PROBLEM, **change)])


@pytest.mark.parametrize("name", ["model.safetensors", "params/params/d/chunks", "checkpoints/7/params/d/chunks"])
def test_a_hash_of_a_model_sees_config_sizes_and_both_ends_of_the_weights(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    config = tmp_path / ("model/config.json" if "checkpoints" in name else "config.json")
    config.parent.mkdir(exist_ok=True)
    config.write_text("{}")
    content = bytearray(3 * EDGE_BYTES)
    hashes = set()
    for change in (0, EDGE_BYTES - 1, -1):
        changed = content.copy()
        changed[change] = 1
        file.write_bytes(changed)
        hashes.add(hash_model(tmp_path))
    file.write_bytes(content)
    hashes.add(hash_model(tmp_path))
    for beside in (tmp_path / "report.html", config.with_name("tokenizer.json")):
        beside.write_text("beside the weights")
    assert hash_model(tmp_path) in hashes
    file.write_bytes(content + b"\0")
    hashes.add(hash_model(tmp_path))
    config.write_text("{ }")
    hashes.add(hash_model(tmp_path))
    assert len(hashes) == 6
