"""What counts as the answer in a response, and as equal to the truth, under either fidelity."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from perception_r1_jax.rewards import worker
from perception_r1_jax.rewards.grading import OK, UNREADABLE_TRUTH, Accuracy, answer_text, delimit, grade

FORMATTED = "<think>\nNot \\boxed{7}.\n</think>\n<answer>\n\\boxed{5}\n</answer>"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<answer>5</answer>", "5"),
        ("<answer>\n5\n</answer>", "\n5\n"),
        ("<answer>4</answer> no, <answer>5</answer>", "5"),
        ("<answer>4<answer>5</answer>", "5"),
        ("<answer>5</answer> tail </answer>", "5"),
        ("<answer>5</answer> <answer>6", "5"),
        ("<answer></answer>", ""),
        ("no block", "no block"),
        ("<answer>5", "<answer>5"),
        ("5</answer>", "5</answer>"),
        ("</answer>5<answer>", "</answer>5<answer>"),
    ],
)
def test_answer_text(response, expected):
    assert answer_text(response) == expected


@pytest.mark.parametrize(
    ("truth", "expected"),
    [
        ("90", "$90$"),
        (" 8\\sqrt{3}\n", "$8\\sqrt{3}$"),
        ("$5$", "$5$"),
        ("$$5$$", "$$5$$"),
        ("it is $5$ m", "it is $5$ m"),
        ("\\(5\\)", "\\(5\\)"),
        ("\\$5", "$\\$5$"),
        ("  ", ""),
    ],
)
def test_delimit(truth, expected):
    assert delimit(truth) == expected


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        (r"\boxed{90^\circ}", "90", 1.0),
        ("\\boxed{90°}", "90", 1.0),
        (r"\boxed{54 \text{ units}}", "54", 1.0),
        (r"\boxed{x=5}", "5", 1.0),
        (r"\boxed{46.49}", "46.5", 0.0),
        (r"\boxed{8}", r"8\sqrt{3}", 0.0),
        (r"\boxed{8\sqrt{3}}", r"8\sqrt{3}", 1.0),
        (r"\boxed{8\sqrt{3}}", r"$8\sqrt{3}$", 1.0),
        (r"\boxed{\frac{207}{4}}", "51.75", 1.0),
        (r"\boxed{1234}", "1,234", 1.0),
        (r"\boxed{\text{A}}", "A", 1.0),
        (r"\boxed{B}", "A", 0.0),
        (r"\boxed{-3}", "3", 0.0),
        (r"\boxed{4} \boxed{5}", "5", 0.0),  # an answer that hedges
        (FORMATTED, "5", 1.0),
        (FORMATTED, "7", 0.0),
        ("\\boxed{5}\n<answer>\n6\n</answer>", "5", 0.0),
        ("", "5", 0.0),
        (r"\boxed{", "5", 0.0),
        (r"\boxed{}", "5", 0.0),
        ("\ud800 \x00", "5", 0.0),
    ],
)
def test_default(response, truth, expected):
    assert grade(response, truth, "default") == Accuracy(expected, OK)


@pytest.mark.parametrize("truth", ["", " \n"])
def test_truth_without_content_is_a_failure_not_a_zero(truth):
    assert grade(r"\boxed{5}", truth, "default") == Accuracy(None, UNREADABLE_TRUTH)


@pytest.mark.parametrize(
    ("response", "truth", "expected"),
    [
        (r"\boxed{8}", r"8\sqrt{3}", 1.0),  # a bare LaTeX truth is read as 8
        (r"\boxed{8\sqrt{3}}", r"8\sqrt{3}", 0.0),
        (r"\boxed{8\sqrt{3}}", r"$8\sqrt{3}$", 1.0),
        ("<answer>\\boxed{5}</answer> and \\boxed{6}", "5", 1.0),  # a block in one line is found
        ("<answer>\\boxed{4}</answer><answer>\\boxed{5}</answer>", "4", 1.0),  # the first one
        ("\\boxed{5}\n<answer>\n6\n</answer>", "5", 1.0),  # over lines it is not, and the whole text holds a box
        (r"\boxed{5}", "", 0.0),
    ],
)
def test_paper(response, truth, expected):
    assert grade(response, truth, "paper") == Accuracy(expected, OK)


def test_paper_scores_an_exception_zero(monkeypatch):
    def fail(*_):
        raise RecursionError

    monkeypatch.setattr("perception_r1_jax.rewards.grading._verify", fail)
    assert grade(r"\boxed{5}", "5", "paper") == Accuracy(0.0, OK)
    with pytest.raises(RecursionError):  # kills the worker: a named failure
        grade(r"\boxed{5}", "5", "default")


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_self_test(fidelity, monkeypatch):
    assert worker.self_test(fidelity) is None
    monkeypatch.setattr("perception_r1_jax.rewards.grading._verify", lambda *_: False)
    assert "90^" in worker.self_test(fidelity)


def test_worker_imports_neither_jax_nor_numpy():
    code = (
        "import sys, perception_r1_jax.rewards.worker; print([m for m in ('jax', 'numpy', 'flax') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_real_answers_equal_themselves_and_not_their_successor(shared_data):
    """Each Geometry3K answer in a box is right; one more than it is wrong."""
    rows = [json.loads(line) for line in (shared_data / "geometry3k" / "train.jsonl").open()]
    truths = [row["answer_latex"] for row in rows if row["answer_latex"]]
    assert len(truths) > 100
    for truth in truths:
        assert grade(f"<answer>\n\\boxed{{{truth}}}\n</answer>", truth, "default").value == 1.0, truth
        assert grade(f"<answer>\n\\boxed{{{truth} + 1}}\n</answer>", truth, "default").value == 0.0, truth
