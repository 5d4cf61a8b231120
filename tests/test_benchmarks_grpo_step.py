"""The benchmark of the whole step: what TRL is asked, that both sides do the same work, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import grpo_step, measure, trl_peer, trl_side
from benchmarks.made import Made
from perception_r1_jax.processing import Processor
from perception_r1_jax.rewards.format import format_reward
from perception_r1_jax.rewards.repetition import repetition_penalty
from tests.stand_in import put_in_place

WORK = grpo_step.Work(prompts=2, samples=2, new_tokens=3, side=90)
CASES = {
    "defaults": ["step", "peak_memory"],
    "tuned": ["tuned", "memory_tuned"],
    "small": ["small", "memory_small", "small_tuned", "memory_small_tuned"],
}

STAND_IN = '''#!{python}
"""Takes trl_side.py's place: keeps what it was asked, makes one step, and ends at the second."""
import json, os, sys
print(json.dumps("ready"), flush=True)
asked = json.loads(sys.argv[2])
json.dump({{**asked, "malloc": os.environ.get("MALLOC_MMAP_MAX_")}}, open({kept!r}, "w"))
sys.stdin.readline()
said = {{"prompts": [[2, 3], [1]], "lengths": [3] * 4, "rewards": [0, 1, 0, 1], "peak_bytes": 5 << 20}}
print(json.dumps(said), flush=True)
sys.stdin.readline()
sys.exit(3)
'''

TEXTS = [
    "<think>\nAB is a side.\n</think>\n<answer>\n\\boxed{3}\n</answer>",
    "<think>\nAB is a side.\n</think>\n<answer>\n\\boxed{}\n</answer>",
    "<think>\nAB is a side.\n</think><answer>\n\\boxed{3}\n</answer>",
    "one two one two one Two three",
    "",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config of a run, its problems written."""
    return grpo_step.prepare_run(tmp_path_factory.mktemp("checkpoints"), tmp_path_factory.mktemp("data"), WORK)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The file in which the stand-in keeps what it was asked."""
    return put_in_place(STAND_IN, trl_peer.VARIABLE, tmp_path, monkeypatch)


@pytest.mark.parametrize("tuned", [False, True])
def test_what_is_asked_and_what_comes_back(run, kept, tuned):
    with grpo_step.peer_side(run, tuned=tuned) as peer:
        assert peer() == Made([[1], [2, 3]], [3] * 4, [0, 1, 0, 1])
        assert peer.peak() == 5
        with pytest.raises(RuntimeError, match="TRL has ended with status 3"):
            peer()
    asked = json.loads(kept.read_text())
    assert (asked["model"], asked["samples"], asked["new_tokens"]) == (run.model.path, 2, 3)
    assert asked["banned"] == list(Processor.from_directory(run.model.path).banned_ids)
    assert [problem["question"] for problem in asked["problems"]] == ["How long is side AB?"] * 2
    assert [Path(problem["image"]).read_bytes()[:4] for problem in asked["problems"]] == [b"\x89PNG"] * 2
    assert asked["weights"] == {"format": 0.1, "accuracy": 0.9, "repetition": 1.0, "custom": 1.0}
    assert (asked["more"].get("gradient_checkpointing"), asked["malloc"]) == ((False, "0") if tuned else (None, None))


def test_both_sides_score_alike():
    rewards = trl_side.reward_functions(ngram_size=2, max_penalty=-2.0)
    told = {"completions": [[{"content": text}] for text in TEXTS], "answer": ["3"] * len(TEXTS)}
    assert rewards["format"](**told) == [format_reward(text) for text in TEXTS] == [1, 0, 0, 0, 0]
    assert rewards["repetition"](**told) == [repetition_penalty(text, 2, -2.0) for text in TEXTS]
    assert rewards["repetition"](**told)[3] < 0
    assert rewards["custom"](**told) == [grpo_step.characters({}, text) for text in TEXTS]


def test_an_answer_is_right_where_it_is_the_true_text():
    accuracy = trl_side.reward_functions(20, -2.0)["accuracy"]
    texts = ["<answer>4</answer> <answer> 3\n</answer>", "<answer>3</answer> <answer>4</answer>", "3"]
    assert accuracy(completions=[[{"content": text}] for text in texts], answer=["3"] * 3) == [1, 0, 1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Made([[1], [2]], [3] * 4, [0, 1, 0, 1]), r"peer saw other prompts than ours, of \[1, 1\] tokens"),
        (Made([[1], [2, 3]], [3, 3, 2, 3], [0, 1, 0, 1]), r"peer made responses of \[3, 3, 2, 3\] tokens, not 3"),
        (Made([[1], [2, 3]], [3] * 3, [0, 1, 0]), r"peer made responses of \[3, 3, 3\] tokens"),
        (Made([[1], [2, 3]], [3] * 4, [0.5] * 4), r"peer gave all responses the reward 0\.5"),
    ],
)
def test_a_side_that_does_other_work_is_not_timed(other, message):
    ours = Made([[1], [2, 3]], [3] * 4, [0, 1, 0, 1])
    with pytest.raises(RuntimeError, match=message):
        grpo_step.time_sides("step", {"ours": lambda: ours, "peer": lambda: other}, WORK, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", grpo_step.WORKLOADS)
def test_a_quick_run_without_a_peer_writes_the_documented_list(tmp_path, monkeypatch, name):
    monkeypatch.delenv(trl_peer.VARIABLE, raising=False)
    out = tmp_path / "out.json"
    options = ["--quick", "--only", name, "--json", str(out), "--checkpoints", str(tmp_path)]
    measure.run(grpo_step.WORKLOADS, "", options)
    cases = json.loads(out.read_text())
    assert [case["case"] for case in cases] == CASES[name]
    assert all(case["ours"] > 0 and case["peer"] is None for case in cases)
