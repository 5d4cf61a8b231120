"""Drawn problems: the same for the same index, right answers, disjoint splits."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

from perception_r1_jax.data.drawn import SIDES, SPLITS, draw_problem

PROBLEMS = {split: [draw_problem(index, split) for index in range(60)] for split in SPLITS}


def _numbers(problem) -> list[int]:
    return [int(number) for fact in problem.annotations for number in re.findall(r"\$(\d+)", fact)]


def test_same_arguments_same_problem_others_another():
    assert draw_problem(3, "train", seed=7) == draw_problem(3, "train", seed=7)
    for other in (draw_problem(4, "train", seed=7), draw_problem(3, "val", seed=7), draw_problem(3, "train", seed=8)):
        assert other.images != draw_problem(3, "train", seed=7).images


def test_answers_follow_from_the_annotations():
    kinds = set()
    for problem in PROBLEMS["train"]:
        first, second = _numbers(problem)
        kinds.add(problem.row["kind"])
        expected = first + second if problem.row["kind"] == "segment" else 180 - first - second
        assert problem.answer == str(expected)
    assert kinds == {"segment", "triangle"}


def test_no_written_number_of_one_split_opens_a_problem_of_another():
    for residue, split in enumerate(SPLITS):
        assert {_numbers(problem)[0] % 3 for problem in PROBLEMS[split]} == {residue}


def test_pictures_are_small_and_all_ink_is_inside():
    for problem in PROBLEMS["train"]:
        image = np.asarray(Image.open(io.BytesIO(problem.images[0])))
        assert set(image.shape[:2]) <= set(SIDES)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert (edge == 255).all()
        assert (image < 128).any()
