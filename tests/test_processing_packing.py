"""Packing: what fits where, and what lies where in the packed arrays."""

from __future__ import annotations

import numpy as np

from perception_r1_jax.processing import Row, first_fit, pack_rows
from perception_r1_jax.records import WINDOW_TOKENS
from tests.sft_fixtures import ROOM, TOKENS, WINDOWS, example, examples


def names(rows):
    return [[one.conversation_id for one in row.examples] for row in rows]


def test_an_example_goes_into_the_first_row_with_room_for_it():
    rows = [Row(20, 1), Row(20, 1)]
    sizes = [("a", 12, 0), ("b", 10, 0), ("c", 8, 0), ("d", 10, 0), ("e", 1, 0)]
    placed = [first_fit(example(name, size - 1, 1, pictures), rows) for name, size, pictures in sizes]
    assert names(rows) == [["a", "c"], ["b", "d"]]
    assert placed == [True, True, True, True, False]


def test_windows_fill_a_row_as_tokens_do():
    rows = [Row(100, 1), Row(100, 2)]
    for name, pictures in (("a", 1), ("b", 1), ("c", 2), ("d", 1), ("e", 0)):
        first_fit(example(name, 1, 1, pictures), rows)
    assert names(rows) == [["a", "e"], ["b", "d"]]


def test_a_packed_row_as_a_picture():
    """A picture, 3 + 4 tokens; then 5 + 6 of text. Responses are marked, 0 and 1 are the segments."""
    batch = pack_rows([examples()[:2]], **(ROOM | {"tokens": 40}))
    segments = "".join("01."[segment] for segment in batch.segment_ids[0])
    losses = "".join(".x"[int(marked)] for marked in batch.loss_mask[0])
    assert segments == "0" * 23 + "1" * 11 + "." * 6
    assert losses == "." * 19 + "xxxx" + "." * 5 + "xxxxxx" + "." * 6


def test_every_example_lies_in_its_place_unchanged():
    a, b, c, *_ = examples()
    batch = pack_rows([[b, a, c], []], **(ROOM | {"tokens": 70}))
    start = 0
    for segment, (one, pictures_before) in enumerate(((b, 0), (a, 0), (c, 1))):
        place = slice(start, start + len(one.tokens))
        np.testing.assert_array_equal(batch.tokens[0, place], one.tokens)
        np.testing.assert_array_equal(batch.positions[0, :, place], one.positions)
        np.testing.assert_array_equal(batch.loss_mask[0, place], one.loss_mask)
        assert (batch.segment_ids[0, place] == segment).all()
        slots = np.where(one.image_slots < 0, -1, one.image_slots + WINDOW_TOKENS * pictures_before)
        np.testing.assert_array_equal(batch.image_slots[0, place], slots)
        start = place.stop
    np.testing.assert_array_equal(batch.patches[0], np.concatenate([a.vision.patches, c.vision.patches]))
    np.testing.assert_array_equal(batch.image_ids, [[0, 1], [-1, -1]])
    assert (batch.segment_ids[0, start:] == -1).all()
    assert (batch.segment_ids[1] == -1).all()
    assert not batch.loss_mask[1].any()


def test_two_pictures_of_one_segment_stay_two():
    *_, d, _, _ = examples()
    batch = pack_rows([[d]], **ROOM)
    np.testing.assert_array_equal(batch.image_ids, [[0, 1]])
    assert batch.tokens.shape == (1, TOKENS)
    assert batch.patches.shape[1] == WINDOWS


def test_a_text_only_batch_has_no_windows():
    batch = pack_rows([[example("a", 3, 4)]], **(ROOM | {"windows": 0}))
    assert batch.image_ids.shape == (1, 0)
    assert batch.patches.size == 0
