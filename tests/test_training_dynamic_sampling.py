"""Filling a batch with groups that teach something: what is taken, carried and given up, and that it always ends."""

from __future__ import annotations

import types

import numpy as np
import pytest

from perception_r1_jax.inference.stats import GenerationStats
from perception_r1_jax.records import Problem, Rollout, Scores
from perception_r1_jax.training.dynamic_sampling import fill_batch, read_carried, write_carried
from perception_r1_jax.training.groups import Groups, join


def to_prompt(name: str):
    return types.SimpleNamespace(problem=Problem(name, "", (), "5"))


def make_groups(names: str, length: int = 4) -> Groups:
    """A group of 2 for each letter; capitals have signal. The letter's code is every token, and the first reward."""
    codes = np.array([ord(letter) for letter in names])
    tokens = np.tile(codes[:, None, None], (1, 2, length)).astype(np.int32)
    total = np.stack([codes, codes + np.array([letter.isupper() for letter in names])], axis=1).astype(np.float32)
    return Groups(
        [to_prompt(letter) for letter in names],
        Rollout(
            tokens, tokens > 0, tokens.astype(np.float32), [["stop", "length"]] * len(names),
            [[letter, letter] for letter in names], GenerationStats(
                *[float(length)] * 4, tokens=length**2, decoded=length**2, steps=10 * length, preempted=1,
                cache_bytes=length * 2**30,
            ),
        ),
        Scores(
            total, {"accuracy": total - np.float32(0.5)}, np.ones(total.shape, bool), [["ok", "none"]] * len(names),
            [[(1.0, 0.0), None]] * len(names), [[(0.75, 0.125), None]] * len(names), {"accuracy/ok": 2 * len(names)},
        ),
        prompt_batch="drawn together",
    )  # fmt: skip


def names(groups: Groups | None) -> str:
    """The letters, if every part of the groups has them in the same order."""
    if groups is None:
        return ""
    letters = "".join(problem.problem_id for problem in groups.problems)
    codes = [ord(letter) for letter in letters]
    np.testing.assert_array_equal(groups.rollout.tokens[:, 0, 0], codes)
    np.testing.assert_array_equal(groups.scores.total[:, 0], codes)
    assert [row[0] for row in groups.rollout.texts] == list(letters)
    return letters


def fill(rounds: list[str], carried: str = "", size: int = 4, max_rounds: int = 3):
    drawn = [make_groups(each) for each in rounds]
    asked = []

    def draw(number):
        asked.append(number)
        return drawn[number]

    filled = fill_batch(draw, make_groups(carried) if carried else None, size, max_rounds)
    assert asked == list(range(len(asked)))
    return filled, len(asked)


@pytest.mark.parametrize(
    ("carried", "rounds", "batch", "spare", "unfilled"),
    [
        ("", ["ABCD"], "ABCD", "", 0.0),
        ("", ["aBcD", "EFgH"], "BDEF", "H", 0.0),  # replaced, and one too many
        ("XY", ["aBCD"], "XYBC", "D", 0.0),  # what was carried comes first
        ("XYZ", ["ABCD"], "XYZA", "BCD", 0.0),
        ("", ["aBcd", "efgh", "Ijkl"], "BIac", "", 0.5),  # three rounds and no more: the rest is without signal
        ("", ["abcd", "efgh", "ijkl"], "abcd", "", 1.0),
    ],
)
def test_what_a_step_takes_and_carries(carried, rounds, batch, spare, unfilled):
    filled, asked = fill(rounds, carried)
    assert asked == len(rounds)
    assert names(filled.batch) == batch
    assert names(filled.carried) == spare
    assert names(filled.drawn) == "".join(rounds)
    assert filled.metrics == {
        "rollout/rounds": len(rounds),
        "rollout/carried_in": len(carried),
        "rollout/carried_out": len(spare),
        "rollout/unfilled": unfilled,
    }


def test_a_single_round_is_taken_as_it_comes():
    filled, _ = fill(["aBcD"], max_rounds=1)
    assert filled.batch is filled.drawn
    assert filled.batch.prompt_batch == "drawn together"
    assert (filled.carried, filled.metrics) == (None, {})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_step_after_step_nothing_is_lost_taken_twice_or_carried_for_long(share):
    rng, carried, taken = np.random.default_rng(0), None, 0
    letters = [chr(code) for code in range(0x4E00, 0x9000)]  # no upper case: the sign of signal is the second reward

    def draw(_):
        nonlocal taken
        groups = make_groups("".join(letters[taken : taken + 8]))
        groups.scores.total[:, 1] += rng.random(8) < share
        taken += 8
        return groups

    used = []
    for _ in range(12):
        before = names(carried)
        filled = fill_batch(draw, carried, 8, 4)
        carried = filled.carried
        assert len(filled.batch) == 8
        assert len(names(carried)) < 8
        assert names(filled.batch).startswith(before)
        assert filled.metrics["rollout/rounds"] <= 4
        used += names(filled.batch)
    assert len(set(used)) == len(used) == 96


def test_joined_groups_have_one_length_and_all_counts():
    joined = join([make_groups("AB", length=4), make_groups("C", length=6)])
    assert joined.rollout.tokens.shape == (3, 2, 6)
    np.testing.assert_array_equal(joined.rollout.mask.sum(-1)[:, 0], [4, 4, 6])
    assert joined.scores.counts == {"accuracy/ok": 6}
    assert joined.prompt_batch is None
    assert joined.rollout.stats.metrics() == {
        "vision_seconds": 4 + 6,
        "prefill_seconds": 4 + 6,
        "decode_seconds": 4 + 6,
        "host_seconds": 4 + 6,
        "tokens_per_second": (16 + 36) / 40,
        "slot_utilisation": (16 + 36) / 100,
        "preempted": 2,
        "cache_gib": 6,
    }


def test_what_is_carried_comes_back_with_its_checkpoint_and_goes_with_it(tmp_path):
    groups = make_groups("ABC")
    groups.scores.terms["accuracy"][1, 0] = np.nan
    write_carried(tmp_path, 2, make_groups("X"), [])
    write_carried(tmp_path, 4, groups, [2])
    back = read_carried(tmp_path, 4, to_prompt)
    assert names(back) == "ABC"
    assert (back.rollout.finish_reasons, back.scores.judge_status) == ([["stop", "length"]] * 3, [["ok", "none"]] * 3)
    assert back.scores.verdicts == [[(1.0, 0.0), None]] * 3
    for ours, theirs in zip((back.rollout, back.scores), (groups.rollout, groups.scores)):
        for name, value in vars(theirs).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(ours, name), value)
    np.testing.assert_array_equal(back.scores.terms["accuracy"], groups.scores.terms["accuracy"])
    assert names(read_carried(tmp_path, 2, to_prompt)) == "X"
    write_carried(tmp_path, 6, None, [4])
    assert read_carried(tmp_path, 6, to_prompt) is None
    assert [path.name for path in (tmp_path / "carried").iterdir()] == ["step-000004.npz"]
