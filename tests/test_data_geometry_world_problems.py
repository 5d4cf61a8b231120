"""The geometry world: its problems are right, their pictures show what they say, and its splits share nothing."""

from __future__ import annotations

import collections
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from perception_r1_jax.data import load_problems
from perception_r1_jax.data.geometry_world import checker, make_problem
from perception_r1_jax.data.geometry_world.families import FAMILIES
from perception_r1_jax.data.geometry_world.language import QUESTIONS
from perception_r1_jax.data.geometry_world.layout import GRID, SIDE
from perception_r1_jax.data.geometry_world.problems import FAMILY_SHARES, SIZES, owner
from perception_r1_jax.data.geometry_world.write import write_split
from perception_r1_jax.rewards import accuracy_reward, format_reward

MAKEFILE = Path(__file__).resolve().parent.parent / "Makefile"
PROBLEMS = {split: [make_problem(index, split) for index in range(150)] for split in SIZES}
TRAIN = PROBLEMS["train"]


def test_the_same_index_is_the_same_problem_and_another_is_another():
    assert make_problem(3, "val", seed=7).row() == make_problem(3, "val", seed=7).row()
    for other in (make_problem(4, "val", seed=7), make_problem(3, "train", seed=7), make_problem(3, "val", seed=8)):
        assert other.row()["images"] != make_problem(3, "val", seed=7).row()["images"]


def test_all_families_appear():
    assert {problem.family for problem in TRAIN} == set(FAMILIES)


def test_families_come_as_often_as_their_shares_say():
    drawn = collections.Counter(make_problem(index, "val").family for index in range(2400))
    parts = sum(FAMILY_SHARES.get(family, 1) for family in FAMILIES)
    for family in FAMILIES:
        expected = 2400 * FAMILY_SHARES.get(family, 1) / parts
        assert abs(drawn[family] - expected) < 4 * expected**0.5  # four standard deviations


def test_shares_name_families():
    assert set(FAMILY_SHARES) < set(FAMILIES)


def test_what_grpo_asks_never_has_the_form_of_the_probe():
    forms = [re.sub(r"\\{.*?\\}", r"\\w+", re.escape(form)) for form in QUESTIONS.values()]
    probes = re.compile("|".join(forms))
    assert all(probes.search(problem.row()["probe_question"]) for problem in TRAIN)
    assert not any(probes.search(problem.row()["problem"]) for problem in TRAIN)


@pytest.mark.parametrize("problem", TRAIN[:60], ids=lambda problem: problem.family)
def test_the_calculation_is_right_and_leads_to_the_answer(problem):
    for step in problem.puzzle.steps:
        left, right = step.split(" = ")
        assert eval(left) == int(right)
    last = problem.puzzle.steps[-1].split(" = ")[1] if problem.puzzle.steps else problem.puzzle.needed[-1].value
    root = problem.puzzle.answer**2 if problem.family == "right triangle" else problem.puzzle.answer
    assert root == int(last)


def test_a_solution_has_the_format_the_answer_and_every_needed_fact():
    for problem in TRAIN:
        row = problem.row()
        assert format_reward(problem.solution) == accuracy_reward(problem.solution, row["answer"]) == 1
        assert checker.perceive(row, problem.solution).perceived, problem.solution


def test_needed_facts_are_in_the_picture_and_the_annotations_say_them():
    for problem in TRAIN:
        row = problem.row()
        assert set(row["needed"]) <= set(row["facts"])
        assert re.findall(r"<info\d+>(.*)</info\d+>", row["visual_key_info"]) == row["needed"]
        assert not set(row["result"]) & set(row["facts"]), "what is asked for must not be written in the picture"


def test_no_test_problem_of_the_makefile_s_world_is_one_of_seed_0():
    """Those were looked at on the way to the recipe; a single fact may be needed in both worlds."""
    seed = int(re.search(r"^WORLD_SEED := (\d+)$", MAKEFILE.read_text(), re.MULTILINE)[1])
    asked = [
        {(problem.question, problem.puzzle.figure.facts()) for problem in made}
        for made in ([make_problem(index, "test", world) for index in range(SIZES["test"])] for world in (0, seed))
    ]
    assert [len(problems) for problems in asked] == [SIZES["test"]] * 2
    assert asked[0].isdisjoint(asked[1])


def test_splits_share_no_facts():
    facts = {split: {tuple(sorted(map(repr, p.puzzle.needed))) for p in made} for split, made in PROBLEMS.items()}
    assert not facts["train"] & facts["val"]
    assert not facts["train"] & facts["test"]
    assert not facts["val"] & facts["test"]
    assert all(owner(problem.puzzle.needed) == split for split, made in PROBLEMS.items() for problem in made)


def test_some_problems_can_be_solved_from_the_text_and_some_be_guessed():
    problems = [problem for family in PROBLEMS.values() for problem in family]
    told = [p for p in problems if all(sentence in p.question for sentence in p.row()["needed"])]
    choices = [re.search(r"Choices: (.*)\.", p.question) for p in problems]
    assert 0.1 < len(told) / len(problems) < 0.3
    assert 0.3 < sum(map(bool, choices)) / len(problems) < 0.5
    for problem, found in zip(problems, choices):
        assert not found or str(problem.puzzle.answer) in found[1].split(", ")


def test_texts_of_a_picture_lie_inside_and_apart_and_are_all_drawn():
    for problem in TRAIN[:40]:
        picture = Image.open(io.BytesIO(problem.row()["images"][0]))
        assert picture.size == (SIDE, SIDE)
        centers = [center for _, center in problem.drawing.texts]
        for text, (x, y) in problem.drawing.texts:
            box = picture.convert("L").crop((int(x) - 5, int(y) - 5, int(x) + 6, int(y) + 6))
            assert box.getextrema()[0] < 128, f"{text} is not to be seen in {problem.name}"
        assert len(set(centers)) == len(centers)


def test_texts_stand_on_a_grid():
    assert all(x % GRID == y % GRID == 0 for problem in TRAIN for _, (x, y) in problem.drawing.texts)


def test_a_point_has_its_letter_next_to_it():
    for problem in TRAIN[:40]:
        for letter, dot in zip(problem.puzzle.figure.points, problem.drawing.dots):
            distances = {text: abs(x - dot[0]) + abs(y - dot[1]) for text, (x, y) in problem.drawing.texts}
            assert min((t for t in distances if t.isalpha()), key=distances.get) == letter


def test_files_hold_the_same_problems_as_the_world_itself(tmp_path):
    write_split(tmp_path / "val.parquet", "val", 20, seed=0)
    loaded, report = load_problems(tmp_path, "val")
    assert report.kept == 20
    for problem, drawn in zip(loaded, PROBLEMS["val"]):
        expected = drawn.problem()
        assert (problem.question, problem.images, problem.answer, problem.annotations) == (
            expected.question,
            expected.images,
            expected.answer,
            expected.annotations,
        )
        assert dict(problem.row) == dict(expected.row)
