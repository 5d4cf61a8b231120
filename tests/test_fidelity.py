"""What `fidelity="paper"` changes: one test for each row of the table in docs/design.md, default beside paper."""

from __future__ import annotations

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from perception_r1_jax.config import arithmetic, default_config, resolve
from perception_r1_jax.errors import UserError
from perception_r1_jax.grpo.advantages import group_advantages
from perception_r1_jax.grpo.aggregation import token_weights
from perception_r1_jax.judge.on_mesh import Judge
from perception_r1_jax.judge.prompts import JudgePrompt, JudgeRequest
from perception_r1_jax.judge.verdicts import Judgement, parse_verdicts, parse_verdicts_paper
from perception_r1_jax.processing.images import PictureProcessor
from perception_r1_jax.records import Problem
from perception_r1_jax.rewards.accuracy import FIDELITIES, AccuracyPool
from perception_r1_jax.rewards.failures import RewardFailed
from perception_r1_jax.rewards.grading import OK, TIMED_OUT, Accuracy, grade
from perception_r1_jax.rewards.score import RewardSettings, score_responses
from perception_r1_jax.training.optimizer import make_optimizer, make_schedule
from perception_r1_jax.weights.random_checkpoint import PREPROCESSOR
from tests.grpo_fixtures import run_config

both = pytest.mark.parametrize("fidelity", FIDELITIES)


def table(default, paper):
    """Runs a test once for each fidelity, with what it should give there."""
    return pytest.mark.parametrize(("fidelity", "expected"), [("default", default), ("paper", paper)])


def resolved(fidelity: str):
    """The default config, but with RLOO, CISPO and Muon, as it runs under a fidelity."""
    config = default_config()
    config.model.path, config.fidelity, config.optimizer.name = "random", fidelity, "muon"
    config.grpo.advantages, config.grpo.loss = "rloo", "cispo"
    return resolve(config)


class Grader:
    """Stands for the pool of workers; says what it is told to."""

    def __init__(self, value: float):
        self.value = value

    def score(self, items):
        return [Accuracy(self.value, OK)] * len(items)


def score(fidelity: str, *judgements: Judgement):
    """Scores of one problem of 4 annotations, a right answer in each response, under the config's settings."""
    problem = Problem("p", "", (), "5", ("a", "b", "c", "d"))
    texts = [r"\boxed{5}" for _ in judgements]
    return score_responses(
        [problem], [texts], [judgements], Grader(1.0), RewardSettings.from_config(resolved(fidelity))
    )


@table(
    ("constrained", "drop_sample", "rloo", "cispo", "sequence_mean", "muon"),
    ("free", "abort", "grpo", "clipped", "micro_batch_mean", "adamw"),
)
def test_the_switch_alone_sets_what_the_config_can_say(fidelity, expected):
    config = resolved(fidelity)
    judge, grpo = config.judge, config.grpo
    set_by_it = (judge.mode, judge.on_failure, grpo.advantages, grpo.loss, grpo.aggregation, config.optimizer.name)
    assert set_by_it == expected
    shown = arithmetic(config, problems=1442, parameters=1, judge_parameters=1, mesh={"data": 1, "fsdp": 1})
    line = "paper: judge.mode = free, judge.on_failure = abort, grpo.advantages = grpo, grpo.loss = clipped, "
    line += "grpo.aggregation = micro_batch_mean, optimizer.name = adamw"
    assert (line in shown) == (fidelity == "paper")


def test_the_switch_leaves_the_given_config_as_it_is():
    config = default_config()
    config.model.path, config.fidelity = "random", "paper"
    assert resolve(config).is_locked
    assert config.judge.mode == "constrained"


def test_a_judge_that_reads_as_the_authors_do_writes_freely():
    settings = {"max_prompt_tokens": 64, "max_new_tokens": 64, "batch_size": 1, "fidelity": "paper"}
    with pytest.raises(UserError, match="mode is 'constrained'; with fidelity 'paper' it must be 'free'"):
        Judge(None, None, JudgePrompt("", ""), mode="constrained", **settings)


@pytest.mark.parametrize(
    ("text", "default", "paper"),
    [
        ("<info1>1</info1>\n<info2>0</info2>\n<info3>1</info3>", (1, 0, 1), (1, 0, 1)),
        ("Yes: <info1>1</info1>\n<info2>0</info2>\n<info3>1</info3>", None, (1, 0, 1)),  # prose beside
        ("<info1>1</info1><info1>0</info1><info2>1</info2><info3>1</info3>", None, (0, 1, 1)),  # the last one
        ("<info1>1</info1><info3>1</info3>", None, (1,)),  # up to the first that is absent
        ("<info1>0.5</info1><info2>7</info2><info3>-7</info3>", None, (0.5, 1, 0)),  # clipped
        ("<info1>yes</info1><info2>1</info2><info3>nan</info3>", None, (0, 1, 1)),  # no number: 0
        ("I see nothing.", None, ()),
    ],
)
def test_verdicts(text, default, paper):
    assert parse_verdicts(text, 3).verdicts == default
    assert parse_verdicts_paper(text) == paper


@table(0.25, 1 / (1 + 1e-6))
def test_the_visual_reward_s_divisor_is_what_was_asked_or_what_was_read(fidelity, expected):
    judgement = Judgement((1.0, 0.0, 0.0, 0.0) if fidelity == "default" else (1.0,), 4, 1, OK)
    scores = score(fidelity, judgement, judgement)
    np.testing.assert_allclose(scores.terms["visual"], expected, rtol=1e-7)
    np.testing.assert_allclose(scores.total, 0.9 + 0.7 * expected, rtol=1e-6)


def test_an_answer_without_a_verdict_fails_or_is_a_zero():
    text = "I see nothing."
    assert not score("default", parse_verdicts(text, 4), parse_verdicts(text, 4)).valid.any()
    judgement = Judgement(parse_verdicts_paper(text), 4, 0, OK)
    scores = score("paper", judgement, judgement)
    assert scores.valid.all()
    np.testing.assert_array_equal(scores.terms["visual"], 0)


def test_a_failed_request_leaves_its_response_out_or_ends_the_run():
    judgements = Judgement(None, 4, 0, "too_long"), Judgement((1.0,) * 4, 4, 4, OK)
    np.testing.assert_array_equal(score("default", *judgements).valid, [[False, True]])
    with pytest.raises(RewardFailed, match="of the problems p; the policy is to abort"):
        score("paper", *judgements)


def test_texts_in_the_judge_s_prompt():
    prompt, request = JudgePrompt("", "{annotations} {response}"), JudgeRequest(("a",), "<info1>1</info1>")
    assert prompt.messages(request)[1]["content"] == "<info1>a</info1> ‹info1>1‹/info1>"
    assert prompt.raw_messages(request)[1]["content"] == "<info1>a</info1> <info1>1</info1>"


@pytest.mark.parametrize(
    ("response", "truth", "default", "paper"),
    [
        ("\\boxed{5}\n<answer>\n6\n</answer>", "5", 0.0, 1.0),  # no DOTALL: a block over lines is not found
        ("<answer>4</answer> <answer>5</answer>", "5", 1.0, 0.0),  # the last block, or the first
        (r"\boxed{8}", r"8\sqrt{3}", 0.0, 1.0),  # a bare LaTeX truth is read as 8
        (r"\boxed{8\sqrt{3}}", r"8\sqrt{3}", 1.0, 0.0),
        ("\\boxed{90°}", "90", 1.0, 0.0),
        (r"\boxed{5}", "", None, 0.0),  # any failure counts 0
    ],
)
def test_accuracy(response, truth, default, paper):
    assert [grade(response, truth, fidelity).value for fidelity in FIDELITIES] == [default, paper]


@table(None, 0.0)
def test_a_comparison_that_runs_out_of_time(fidelity, expected):
    with AccuracyPool(workers=1, deadline_seconds=0.5, fidelity=fidelity) as pool:
        assert pool.score([(r"\boxed{9^{9^{9^{9}}}}", "5")]) == [Accuracy(expected, TIMED_OUT)]


@table(0.0, -0.00739171)  # the latter by torch
def test_advantages_of_equal_rewards(fidelity, expected):
    advantages = group_advantages(np.full((1, 8), 0.1, np.float32), fidelity=fidelity)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5)


@table((1 / 36, 1 / 18), (1 / 64, 1 / 4))
def test_the_loss_is_a_mean_over_responses_or_over_the_tokens_of_each_8(fidelity, expected):
    mask = np.ones((9, 4), bool)
    mask[8, 2:] = False  # 8 responses of 4 tokens, then one of 2
    weights = token_weights(mask, resolved(fidelity).grpo.aggregation)
    np.testing.assert_allclose(weights[[0, 8], 0], expected, rtol=1e-6)
    np.testing.assert_allclose(np.sum(weights), 1, rtol=1e-6)


@pytest.mark.parametrize(("low", "high", "sides"), [(3136, 20_000, (180, 110)), (100_000, 200_000, (404, 247))])
def test_pictures_outside_the_limits(low, high, sides, tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 327, 3), np.uint8))
    limits = {"min_pixels": low, "max_pixels": high}
    default, paper = (PictureProcessor.from_directory(tmp_path, **limits, fidelity=name) for name in FIDELITIES)
    by_hand = PictureProcessor.from_directory(tmp_path)(encode(picture.resize(sides)))[0]
    np.testing.assert_array_equal(paper(encode(picture))[0], by_hand)
    assert not np.array_equal(default(encode(picture))[0], by_hand)


def encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@table(0.0, 0.05)
def test_weight_decay_of_biases_and_norms(fidelity, expected):
    params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones((1,)), "scale": jnp.ones((1,))}
    options = run_config(optimizer__learning_rate=0.1, optimizer__weight_decay=0.5).optimizer
    optimizer = make_optimizer(options, 10, fidelity=fidelity)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_allclose([updates["bias"][0], updates["scale"][0]], -expected, rtol=1e-6)


@both
def test_warm_up(fidelity):
    config = resolved(fidelity)
    schedule = make_schedule(config.optimizer, config.steps, fidelity=fidelity)
    first = {"default": 1, "paper": 0}[fidelity]
    rates = [float(schedule(jnp.int32(k))) for k in range(15)]
    np.testing.assert_allclose(rates, [1e-6 * min(1, (k + first) / 13) for k in range(15)], rtol=1e-6)
