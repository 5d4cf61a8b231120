"""Evaluations: what is asked in which batches, what comes back, and that nothing but the problem decides a response."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from perception_r1_jax.evaluation.evaluate import evaluate
from perception_r1_jax.evaluation.task import Evaluation
from perception_r1_jax.inference import Engine
from perception_r1_jax.inference.generation import FinishedGroups
from perception_r1_jax.processing import Processor
from perception_r1_jax.records import Problem
from perception_r1_jax.training.stopping import Stopped
from perception_r1_jax.weights.random_checkpoint import write_random_checkpoint
from tests import parity, stub_checker

CONSOLE = Console(file=io.StringIO())
PICTURE = parity.drawing(56, 56, 0)
PROBLEMS = [
    Problem("p0", "What is 1 + 1?", (PICTURE,), "2"),
    Problem("p1", "What is <image> in a long question" + ", and more of it" * 8 + "?", (PICTURE,), "2"),
    Problem("p2", "How long is AB?", (PICTURE,), "2"),
    Problem("far too long", "What is it? " * 60, (PICTURE,), "2"),
    Problem("p4", "How long is BC?", (parity.drawing(140, 56, 1),), "2"),
]
LONG = "prompt above 128 tokens"


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("evaluate"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def processor(model_dir) -> Processor:
    return dataclasses.replace(Processor.from_directory(model_dir), max_prompt_tokens=128, max_windows=2)


def evaluation(**changes) -> Evaluation:
    fields = {
        "name": "val",
        "problems": PROBLEMS,
        "instruction": "Think.",
        "checker": stub_checker,
        "questions": [f"Which point is it in {problem.problem_id}, <image>?" for problem in PROBLEMS],
        "batch_size": 2,
        "max_new_tokens": 12,
        "probe_max_new_tokens": 4,
        "stop_strings": ("The end.",),
        "prompt_buckets": (80, 128),
        "window_buckets": (2,),
        "workers": 1,
        "deadline_seconds": 5.0,
    }
    return Evaluation(**fields | changes)


class ScriptedEngine(Engine):
    """Answers each prompt with a text of the test's, and keeps what it was asked."""

    def __init__(self, processor: Processor, answer):
        self.processor, self.answer, self.batches = processor, answer, []

    def plan(self, rows, length, samples, sampling) -> None:
        """There is room for all."""

    def generate(self, prompts, samples, sampling, key, *, decode, on_progress, on_groups) -> None:
        assert (samples, sampling.temperature, len(sampling.banned_ids)) == (1, 0.0, 5)
        assert sampling.stop_strings == ("The end.",)
        while prompts is not None:
            on_progress(0)
            prompts = on_groups(self._answer(prompts, sampling))

    def _answer(self, prompts, sampling) -> FinishedGroups:
        """All at once: those that are given in their place come in the first rows again."""
        texts = [self.processor.decode(row[:size]) for row, size in zip(prompts.tokens, prompts.lengths) if size]
        self.batches.append((*prompts.tokens.shape, sampling.max_new_tokens, texts))
        tokens = np.full((len(texts), 1, sampling.max_new_tokens), sampling.pad_id, np.int32)
        mask, stopped = np.zeros(tokens.shape, bool), np.ones((len(texts), 1), bool)
        for row, text in enumerate(texts):
            said = [*self.processor.chat.encode_text(self.answer(text)), sampling.stop_ids[0]]
            stopped[row] = len(said) <= sampling.max_new_tokens
            said = said[: sampling.max_new_tokens]
            tokens[row, 0, : len(said)], mask[row, 0, : len(said)] = said, True
        return FinishedGroups(list(range(len(texts))), tokens, mask, np.zeros(mask.shape, np.float32), stopped)


def test_what_is_asked(processor):
    engine = ScriptedEngine(processor, lambda text: "2")
    evaluate(evaluation(), engine, processor, CONSOLE)
    shapes = [batch[:3] for batch in engine.batches]
    # p0 and p2 are begun, p4 takes the place of one of them, the long p1 has its turn then; all probes are short.
    assert shapes == [(2, 80, 12), (1, 80, 12), (2, 128, 12), (2, 80, 4), (2, 80, 4), (1, 80, 4)]
    asked = [[text.partition("user\n")[2].partition("\nassistant")[0] for text in batch[3]] for batch in engine.batches]
    assert asked[:2] == [["What is 1 + 1? Think.", "How long is AB? Think."], ["How long is BC? Think."]]
    assert asked[2][0].startswith("What is  in a long question, and more of it")  # the picture is where the marker was
    probes = [f"Which point is it in {problem.problem_id}, <image>?" for problem in PROBLEMS]  # the question alone
    assert asked[3:] == [probes[:2], probes[2:4], probes[4:]]


def test_what_a_progress_report_raises_ends_it_within_a_batch(processor):
    engine, reports = ScriptedEngine(processor, lambda text: "2"), []

    def third_time(finished: int) -> None:
        reports.append(finished)
        if len(reports) == 3:
            raise Stopped("SIGTERM")

    with pytest.raises(Stopped):
        evaluate(evaluation(), engine, processor, CONSOLE, third_time)
    assert len(engine.batches) == 2  # the third is never answered


def test_what_comes_back(processor):
    answers = {"1 + 1": "<answer>2</answer>", "AB": "x " * 40, "BC": "raise", "p0": "5", "Which": "6", "long": "3"}
    engine = ScriptedEngine(processor, lambda text: next(said for part, said in answers.items() if part in text))
    items = evaluate(evaluation(), engine, processor, CONSOLE)
    assert [item.problem_id for item in items] == [problem.problem_id for problem in PROBLEMS]
    plus, long, cut, dropped, raised = items
    assert (plus.response, plus.extracted, plus.accuracy) == ("<answer>2</answer>", "2", 1.0)
    assert (long.response, long.accuracy) == ("3", 0.0)
    assert (cut.finish_reason, cut.accuracy) == ("length", 0.0)
    assert (dropped.response, dropped.accuracy, dropped.perception) == (None, None, None)
    assert dropped.failures["response"].startswith(LONG)
    assert (raised.accuracy, raised.perception, raised.failures) == (0.0, None, {"perception": "KeyError: 'needed'"})
    assert [item.probe for item in items] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert [item.probe_response for item in items] == ["5", "6", "6", "6", "6"]


def test_without_a_checker_there_are_no_probes(processor):
    engine = ScriptedEngine(processor, lambda text: "2")
    items = evaluate(evaluation(checker=None, questions=()), engine, processor, CONSOLE)
    assert [batch[2] for batch in engine.batches] == [12] * 3
    assert {item.probe for item in items} == {item.perception for item in items} == {None}
    assert [item.accuracy for item in items] == [1.0, 1.0, 1.0, None, 1.0]
