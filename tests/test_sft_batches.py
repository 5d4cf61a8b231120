"""Packed batches: every conversation once, nothing lost at a resume, and errors instead of an endless search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from perception_r1_jax.data import DataError, DroppedProblem
from perception_r1_jax.records import Conversation
from perception_r1_jax.sft.batches import make_batches
from tests.sft_fixtures import ROOM, TOKENS, example

SIZES = np.random.default_rng(0).integers(4, TOKENS - 3, 60)
SIZES[[7, 30]] = TOKENS + 1
CONVERSATIONS = [Conversation(str(number), (), ()) for number in range(len(SIZES))]


def prepare(conversation):
    """Text of the conversation's size, its first token the conversation's number; two are too long."""
    number = int(conversation.conversation_id)
    if SIZES[number] > TOKENS:
        raise DroppedProblem(conversation.conversation_id, f"prompt above {TOKENS} tokens")
    one = example(conversation.conversation_id, SIZES[number] - 3, 3)
    one.tokens[0] = number
    return one


def batches(conversations=CONVERSATIONS, **changes):
    options = {"rows": 4, "waiting": 3, "seed": 1, "prefetch": 4, **changes}
    return make_batches(conversations, prepare, **ROOM, **options)


def held(batch):
    """The numbers of the conversations of each row."""
    starts = np.diff(batch.segment_ids, axis=1, prepend=-1) > 0
    return [row[start].tolist() for row, start in zip(batch.tokens, starts)]


def taken(iterator, count=None):
    return [held(batch) for batch in itertools.islice(iterator, count)]


def test_one_pass_has_every_conversation_once():
    rows = [row for batch in taken(batches(epochs=1)) for row in batch]
    numbers = sorted(itertools.chain.from_iterable(rows))
    assert numbers == [number for number in range(60) if number not in (7, 30)]
    assert all(sum(SIZES[row]) <= TOKENS for row in rows)


def test_waiting_conversations_fill_rows_better():
    def filled(waiting):
        return np.mean([np.mean(batch.segment_ids >= 0) for batch in itertools.islice(batches(waiting=waiting), 12)])

    assert filled(10) > filled(1) + 0.04


def test_the_order_is_the_seeds_and_not_the_threads():
    assert taken(batches(), 12) == taken(batches(prefetch=0), 12) == taken(batches(prefetch=9), 12)
    assert taken(batches(), 12) != taken(batches(seed=2), 12)
    first = taken(batches(shuffle=False), 1)[0]
    assert first[0][0] == 0


def test_dropped_conversations_are_named_once():
    iterator = batches()
    taken(iterator, 20)
    assert iterator.dropped == {name: f"{name}: prompt above {TOKENS} tokens" for name in ("7", "30")}


@pytest.mark.parametrize("done", [0, 1, 4, 9])
def test_a_resumed_stream_goes_on_as_it_would_have(tmp_path, done):
    """Through an orbax checkpoint, with conversations waiting."""
    first = batches()
    taken(first, done)
    ocp.save_checkpointables(tmp_path / "state", {"data": first})
    state, rest = first.get_state(), taken(first, 8)
    assert len(state["waiting"]) == (3 if done else 0)

    resumed = batches()
    taken(resumed, 2)
    ocp.load_checkpointables(tmp_path / "state", {"data": resumed})
    assert resumed.get_state() == state
    assert taken(resumed, 8) == rest
    assert resumed.get_state() == first.get_state()


def test_nothing_that_fits_is_an_error_not_an_endless_search():
    with pytest.raises(DataError, match=r"No conversation fits: 2 problems were dropped \(.*prompt above"):
        next(batches([CONVERSATIONS[7], CONVERSATIONS[30]]))


def test_a_failure_that_is_not_the_datas_names_the_conversation():
    with pytest.raises(ValueError, match="invalid literal") as error:
        next(batches([Conversation("x", (), ())]))
    assert "conversation 'x'" in error.value.__notes__[0]
