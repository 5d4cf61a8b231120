"""M-RoPE positions against a drawing, against the recorded ones of transformers, and against it live."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.processing.positions import rope_positions
from tests.fixtures import make_positions as golden


def positions(tokens: np.ndarray, grids: np.ndarray) -> tuple[np.ndarray, int]:
    return rope_positions(tokens, grids, image_token_id=golden.IMAGE, video_token_id=golden.VIDEO)


def test_the_drawn_example():
    found, next_position = positions(np.array([5] + [golden.IMAGE] * 6 + [6]), np.array([[1, 4, 6]]))
    assert found.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4],
        [0, 1, 1, 1, 2, 2, 2, 4],
        [0, 1, 2, 3, 1, 2, 3, 4],
    ]
    assert next_position == 5
    assert found.dtype == np.int32


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("row", range(len(golden.CASES)), ids=golden.CASES)
def test_positions_are_the_recorded_ones(side, row):
    fixture = np.load(golden.FIXTURE)
    mask = fixture[f"{side}/mask"][row]
    tokens = fixture[f"{side}/tokens"][row][mask]
    found, next_position = positions(tokens, golden.prompt_of(list(golden.CASES.values())[row])[1])
    np.testing.assert_array_equal(found, fixture[f"{side}/positions"][:, row, mask])
    assert next_position - len(tokens) == fixture[f"{side}/deltas"][row]


def test_the_recorded_positions_are_what_transformers_gives():
    pytest.importorskip("torch")
    recorded = np.load(golden.FIXTURE)
    for name, array in golden.build().items():
        np.testing.assert_array_equal(recorded[name], array, err_msg=name)


def test_random_prompts_agree_with_transformers():
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    cases = []
    for pictures in (0, 1, 2, 4, 7):
        case = [[3, golden.START]]
        for _ in range(pictures):
            case += [tuple(2 * rng.integers(1, 9, 2)), [golden.END, *[4] * rng.integers(0, 4), golden.START]]
        cases.append(golden.prompt_of(case))
    tokens, mask = golden.pad_rows([tokens for tokens, _ in cases], left=True)
    expected, deltas = golden.reference(tokens, mask, np.concatenate([grids for _, grids in cases]))
    for row, (unpadded, grids) in enumerate(cases):
        found, next_position = positions(unpadded, grids)
        np.testing.assert_array_equal(found, expected[:, row, mask[row]])
        assert next_position - len(unpadded) == deltas[row]


def test_video_tokens_are_refused():
    with pytest.raises(ValueError, match="token 1 is a video token"):
        positions(np.array([5, golden.VIDEO]), np.zeros((0, 3), np.int64))


@pytest.mark.parametrize("count", [5, 7])
def test_image_tokens_that_do_not_match_the_grid_are_refused(count):
    with pytest.raises(ValueError, match=rf"{count} image tokens do not match the \[6\] features"):
        positions(np.array([golden.IMAGE] * count), np.array([[1, 4, 6]]))
