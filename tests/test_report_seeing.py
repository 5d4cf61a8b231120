"""The split of a change in perception into stating and reading."""

from __future__ import annotations

import pytest

from perception_r1_jax.evaluation.items import Item
from perception_r1_jax.report.before_after import BeforeAfter
from perception_r1_jax.report.seeing import follow
from perception_r1_jax.report.workdir import MissingData

WORDS = {"r": "right", "m": "misread", "a": "absent"}


def seen(states: str, wrong: int = 0, name: str = "p") -> Item:
    """An item with these needed facts, by their first letters, and so many wrong statements beside them."""
    wrong += states.count("m")
    perceived = float(wrong == 0 and set(states) == {"r"})
    return Item(name, "x", perception=perceived, facts_wrong=wrong, fact_states=[WORDS[letter] for letter in states])


def test_facts_by_their_moves():
    seeing = follow(BeforeAfter(9, [(seen("ramr"), seen("rrrm")), (seen("ra", name="q"), seen("aa", name="q"))]))
    assert seeing.changes == {"newly_stated": 1, "newly_right": 1, "no_longer_stated": 1, "no_longer_right": 1}
    assert seeing.total == 6
    assert [seeing.before(state) for state in WORDS.values()] == [3, 1, 2]
    assert [seeing.after(state) for state in WORDS.values()] == [3, 1, 2]


@pytest.mark.parametrize(
    ("before", "lacked"),
    [
        (seen("ra"), "left out"),
        (seen("rm"), "wrong"),
        (seen("rr", wrong=1), "wrong"),
        (seen("ma"), "both"),
        (seen("ra", wrong=1), "both"),
    ],
)
def test_what_a_response_lacked_whose_perception_was_gained(before, lacked):
    gained = {"left out": 0, "wrong": 0, "both": 0} | {lacked: 1}
    seeing = follow(BeforeAfter(9, [(before, seen("rr")), (seen("am", name="q"), seen("am", name="q"))]))
    assert (seeing.gained, sum(seeing.lost.values())) == (gained, 0)
    seeing = follow(BeforeAfter(9, [(seen("rr"), before)]))
    assert (seeing.lost, sum(seeing.gained.values())) == (gained, 0)


def test_without_states_there_is_nothing_to_follow():
    with pytest.raises(MissingData, match="no states of facts"):
        follow(BeforeAfter(9, [(Item("p", "x"), Item("p", "x"))]))
