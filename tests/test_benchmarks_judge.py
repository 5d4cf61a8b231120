"""The judge's benchmark: all sides answer the same requests, and it writes what is documented."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import judge as bench
from benchmarks import shape, vllm_peer
from benchmarks.rollout import load_peer
from perception_r1_jax.judge.prompts import JudgeRequest
from tests.small_shape import LAYERS, SMALL
from tests.test_benchmarks import FIELDS
from tests.test_benchmarks_vllm import kept  # noqa: F401  (a fixture)

CASES = {
    "requests": {"requests", "shared_cache"},
    "parts": {"uncached", "free_text", "floor", "floor_alone", "model_calls", "prefix_bytes"},
}


@pytest.fixture(scope="module", autouse=True)
def a_small_shape():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shape, "STANDARD", SMALL)
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def setup(checkpoints):
    return bench.make_setup(checkpoints, 2)


def test_requests_are_those_that_are_documented(setup):
    tokenizer = setup.model.processor.tokenizer
    assert len(setup.judge.prefix_tokens) == 1300
    for request in setup.requests:
        assert len(request.annotations) == 6
        assert len(tokenizer.encode(request.response, add_special_tokens=False)) == 300
    first, second = (rest.tokens for rest in setup.rests)
    assert len(first) == len(second) > 372  # 6 x 12 of annotations and what marks them, beside the response
    assert (first[:2] != second[:2]).any()


def test_all_sides_write_the_same(setup):
    """At a temperature of almost 0: whole prompts, the peer's own cache of what they share, and ours."""
    pytest.importorskip("torch")
    peer, cold, new_tokens = load_peer(setup.model), 1e-4, 5
    inputs = peer.inputs(setup.prompts)
    whole = peer.generate(inputs, 1, new_tokens, cold)
    np.testing.assert_array_equal(peer.generate_behind(inputs, peer.prefix(inputs, 1300), new_tokens, cold), whole)
    prefix = setup.engine.prefix(setup.judge.prefix_tokens)
    (ours,) = bench.free_text(prefix, setup)()
    np.testing.assert_array_equal(ours.tokens[:, 0, :new_tokens], whole)
    assert not np.array_equal(whole[0], whole[1])


@pytest.mark.parametrize("name", CASES)
def test_quick_runs_write_the_documented_list(checkpoints, tmp_path, capsys, name):
    pytest.importorskip("torch")
    out = tmp_path / "out.json"
    options = ["--requests", "2", "--quick", "--only", name, "--json", str(out), "--checkpoints", str(checkpoints)]
    bench.main(options)
    cases = {case["case"]: case for case in json.loads(out.read_text())}
    assert set(cases) == CASES[name]
    for case in cases.values():
        assert list(case) == FIELDS
        assert min(case["ours"], case["peer"], case["ratio"]) > 0
    if name == "parts":
        assert (cases["model_calls"]["ours"], cases["model_calls"]["peer"]) == (5, 53)
        assert 2 <= cases["prefix_bytes"]["ratio"] < 2.2, "of two requests, whose prompts are padded"
        assert cases["prefix_bytes"]["ours"] == pytest.approx(1300 * LAYERS * 2 * 2 * 64 * 4 / 2**20)
    assert all(name in capsys.readouterr().out for name in ("cores",))


def test_both_modes_of_the_embedded_judge_are_compared(checkpoints, tmp_path):
    out = tmp_path / "out.json"
    bench.main(["--requests", "2", "--only", "modes", "--json", str(out), "--checkpoints", str(checkpoints)])
    (case,) = json.loads(out.read_text())
    assert (case["case"], case["ours"], case["peer"], case["unit"]) == ("modes_agree", 1.0, None, "share")


def test_the_large_judge_is_timed_in_both_dtypes_and_not_on_a_cpu(checkpoints, tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ["--requests", "1", "--only", "large", "--json", str(out), "--checkpoints", str(checkpoints)]
    bench.main(options)
    assert json.loads(out.read_text()) == []
    assert "give --quick for a tiny shape" in capsys.readouterr().out
    bench.main([*options, "--quick"])
    cases = {case["case"]: case for case in json.loads(out.read_text())}
    assert set(cases) == {"large_bfloat16", "large_int8"}
    for case in cases.values():
        assert case["ours"] > 0
        assert (case["peer"], case["ratio"], case["unit"]) == (None, None, "requests/s")


def test_rates_are_of_the_requests_that_a_side_answers(setup, monkeypatch, capsys):
    asked = {"ours": [], "slow": []}

    def interleave(sides, rounds, warm):
        for run in [*warm.values(), *sides.values()]:
            run()
        return {"ours": [2.0], "slow": [4.0]}

    monkeypatch.setattr(bench, "PART", 1)
    monkeypatch.setattr(bench, "ROWS", 1)
    monkeypatch.setattr(bench.measure, "interleave", interleave)
    sides = {name: lambda part, name=name: lambda: asked[name].append(len(part.requests)) for name in asked}
    (case,) = bench.time_sides(setup, sides, {"ours": 2}, rounds=1)
    assert asked == {"ours": [1, 2], "slow": [1, 1]}  # a batch to get warm first
    assert (case.ours, case.peer, case.ratio) == (1.0, 0.25, 4.0)
    assert "ours 2, slow 1" in capsys.readouterr().out


def test_vllm_is_asked_for_whole_prompts(setup, kept, checkpoints):  # noqa: F811
    (case,) = bench.vllm(checkpoints, quick=True, count=2)
    assert (case.case, case.ratio > 0) == ("vllm_prefix", True)
    asked = json.loads(kept.read_text())
    assert asked["prompts"] == [prompt.tokens.tolist() for prompt in setup.prompts]
    assert (asked["new_tokens"], asked["samples"]) == (54, 1)


def test_without_vllm_it_has_no_case(checkpoints, monkeypatch):
    monkeypatch.delenv(vllm_peer.VARIABLE, raising=False)
    assert bench.vllm(checkpoints, quick=True, count=2) == []


def test_a_judge_that_fails_is_no_measurement(setup):
    with pytest.raises(RuntimeError, match=r"verdicts read: \[5\], not 6"):
        bench.judge_all(setup.judge, [JudgeRequest(setup.requests[0].annotations[:5], "so")])


def test_no_other_case_has_a_documented_name_in_its_own():
    documented = ("group", "plain", "long_tail", "single", "step", "requests", "images")
    for name in set.union(*CASES.values()) - {"requests"}:
        assert not any(word in name for word in documented)
