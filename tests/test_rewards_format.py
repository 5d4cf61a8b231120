"""The format reward against a table, against the regular expression that defines it, and against the clock."""

from __future__ import annotations

import random
import re
import time

import pytest

from perception_r1_jax.rewards import format_reward

DEFINITION = re.compile(r"<think>\n.*\n</think>\n<answer>\n.*\\boxed\{.+\}.*\n</answer>", re.DOTALL)
GOOD = "<think>\nThe angles sum to 180.\n</think>\n<answer>\nIt is \\boxed{90}.\n</answer>"


@pytest.mark.parametrize(
    "response",
    [
        GOOD,
        "<think>\n\n</think>\n<answer>\n\\boxed{5}\n</answer>",
        "<think>\na\n\nb\n</think>\n<answer>\n\\boxed{\\frac{1}{2}}\n</answer>",
        "<think>\nπ \\boxed{1}\n</think>\n<answer>\nfirst\n\\boxed{π}\nlast\n</answer>",
        "<think>\na\n</think>\n<answer>\n\\boxed{\n}\n</answer>",
        "<think>\na\n</think>\n<answer>\n\\boxed{1}\n</answer>\n</answer>",
        "<think>\na\n</think>\n<answer>\n</think>\n<answer>\n\\boxed{1}\n</answer>",
    ],
)
def test_well_formed(response):
    assert format_reward(response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "",
        "90",
        "\\boxed{90}",
        " " + GOOD,
        GOOD + "\n",
        GOOD + " ",
        "\n" + GOOD,
        GOOD + GOOD[:-1],
        GOOD.replace("{90}", "{}"),
        GOOD.replace("\\boxed{90}", "90"),
        GOOD.replace("\\boxed{90}", "\\boxed{90"),
        GOOD.replace("\\boxed{90}", "boxed{90}"),
        GOOD.replace("</think>\n<answer>", "</think>\n\n<answer>"),
        GOOD.replace("</think>\n<answer>", "</think><answer>"),
        GOOD.replace("</think>\n<answer>", "</think> \n<answer>"),
        GOOD.replace("<answer>\n", "<answer>"),
        GOOD.replace("\n</answer>", "</answer>"),
        GOOD.replace("\n</think>", "</think>"),
        GOOD.replace("<think>\n", "<think>"),
        GOOD.replace("<think>", "<THINK>"),
        GOOD.replace("\n", "\r\n"),
        "<think>\n\\boxed{90}\n</think>\n<answer>\n90\n</answer>",
        "<think>\n\\boxed{\n</think>\n<answer>\n90}\n</answer>",
        "<think>\n</think>\n<answer>\n\\boxed{1}\n</answer>",
        "<think>\na\n</think>\n<answer>\n</answer>",
        "<answer>\n\\boxed{1}\n</answer>\n<think>\na\n</think>",
    ],
)
def test_malformed(response):
    assert format_reward(response) == 0.0


def test_equals_the_definition_on_random_texts():
    pieces = ["<think>", "</think>", "<answer>", "</answer>", "\n", "\\boxed{", "}", "x", "{"]
    skeleton = ["<think>", "\n", "x", "\n", "</think>", "\n", "<answer>", "\n", "\\boxed{", "x", "}", "\n", "</answer>"]
    draw, seen = random.Random(0), set()
    for _ in range(20_000):
        text = list(skeleton)
        for _ in range(draw.randrange(4)):
            place = draw.randrange(len(text))
            text[place : place + draw.randrange(3)] = draw.choices(pieces, k=draw.randrange(3))
        response = "".join(text)
        expected = float(DEFINITION.fullmatch(response) is not None)
        assert format_reward(response) == expected, response
        seen.add(expected)
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize(
    "piece", ["\n</think>\n<answer>\n", "\\boxed{", "\\boxed{}", "\n</think>\n<answer>\n\\boxed{", "}"]
)
def test_long_adversarial_texts_take_no_time(piece):
    text = piece * (200_000 // len(piece))
    start = time.perf_counter()
    for response in (
        f"<think>\n{text}\n</answer>",
        f"<think>\n{text}",
        f"<think>\nx\n</think>\n<answer>\n{text}\n</answer>",
    ):
        format_reward(response)
    assert time.perf_counter() - start < 0.5
