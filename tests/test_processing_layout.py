"""Windows: every patch once, in the window of its neighbours, and in transformers' order."""

from __future__ import annotations

import numpy as np
import pytest

from perception_r1_jax.processing.layout import image_tokens, lay_out_patches
from perception_r1_jax.records import WINDOW_PATCHES

GRIDS = [
    [(2, 2)],
    [(8, 8)],
    [(16, 8)],
    [(6, 12)],
    [(18, 22)],
    [(2, 30), (14, 10), (8, 8)],
]


def numbered(grids: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Patches [S, 3] that say picture, row and column of themselves, listed by merge units; and their grids."""
    patches = []
    for image, (rows, columns) in enumerate(grids):
        for row, column in np.ndindex(rows // 2, columns // 2):
            patches += [(image, 2 * row + i, 2 * column + j) for i in (0, 1) for j in (0, 1)]
    return np.array(patches, np.float32), np.array([(1, *grid) for grid in grids], np.int64)


def test_a_drawn_picture_of_3_by_6_units():
    layout = lay_out_patches(*numbered([(6, 12)]))
    assert layout.token_slots.reshape(3, 6).tolist() == [
        [0, 1, 2, 3, 16, 17],
        [4, 5, 6, 7, 18, 19],
        [8, 9, 10, 11, 20, 21],
    ]
    assert layout.patch_valid.sum(axis=1).tolist() == [48, 24]
    assert layout.patch_positions[1, :6].tolist() == [[0, 8], [0, 9], [1, 8], [1, 9], [0, 10], [0, 11]]
    assert layout.image_ids.tolist() == [0, 0]


@pytest.mark.parametrize("grids", GRIDS)
def test_every_patch_once_with_its_neighbours_and_its_position(grids):
    pixel_values, thw = numbered(grids)
    layout = lay_out_patches(pixel_values, thw)
    assert layout.patches.shape == (len(layout.image_ids), WINDOW_PATCHES, 3)
    found = layout.patches[layout.patch_valid]
    assert sorted(map(tuple, found)) == sorted(map(tuple, pixel_values))
    assert (layout.patches[~layout.patch_valid] == 0).all()
    np.testing.assert_array_equal(found[:, 1:], layout.patch_positions[layout.patch_valid])
    for window, image, valid in zip(layout.patches, layout.image_ids, layout.patch_valid):
        count = valid.sum()
        assert count
        assert valid[:count].all()  # filled from the front
        assert (window[valid, 0] == image).all()
        assert len(np.unique(window[valid, 1:] // 8, axis=0)) == 1  # one tile of 8 x 8 patches


@pytest.mark.parametrize("grids", GRIDS)
def test_token_slots_are_the_units_in_raster_order(grids):
    pixel_values, thw = numbered(grids)
    layout = lay_out_patches(pixel_values, thw)
    assert len(layout.token_slots) == image_tokens(thw).sum()
    units = layout.patches.reshape(-1, 4, 3)[layout.token_slots]
    np.testing.assert_array_equal(units, pixel_values.reshape(-1, 4, 3))
    assert layout.patch_valid.reshape(-1, 4)[layout.token_slots].all()


def test_no_pictures_give_no_windows_but_keep_the_patch_size():
    layout = lay_out_patches(np.zeros((0, 1176), np.float32), np.zeros((0, 3), np.int64))
    assert layout.patches.shape == (0, WINDOW_PATCHES, 1176)
    assert layout.token_slots.shape == layout.image_ids.shape == (0,)


@pytest.mark.parametrize(
    ("grid", "patches", "message"),
    [((2, 4, 4), 32, "video"), ((1, 3, 4), 12, "multiple of 2"), ((1, 4, 4), 12, "12 patches do not fill")],
)
def test_grids_that_cannot_be_are_refused(grid, patches, message):
    with pytest.raises(ValueError, match=message):
        lay_out_patches(np.zeros((patches, 3), np.float32), np.array([grid]))


@pytest.mark.parametrize("grids", GRIDS)
def test_windows_are_those_of_transformers(grids):
    torch = pytest.importorskip("torch")
    from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

    pixel_values, thw = numbered(grids)
    layout = lay_out_patches(pixel_values, thw)
    order, boundaries = get_vision_window_index(
        torch.from_numpy(thw), spatial_merge_size=2, window_size=112, patch_size=14
    )
    assert layout.patch_valid.sum(axis=1).cumsum().tolist() == boundaries.tolist()[1:]
    units = pixel_values.reshape(-1, 4, 3)[order.numpy()].reshape(-1, 3)
    np.testing.assert_array_equal(layout.patches[layout.patch_valid], units)
    by_token = layout.patch_positions.reshape(-1, 4, 2)[layout.token_slots].reshape(-1, 2)
    np.testing.assert_array_equal(by_token, get_vision_position_ids(torch.from_numpy(thw), 2).numpy())
