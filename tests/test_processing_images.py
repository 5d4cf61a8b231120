"""Pictures: decoding, faults, pixel limits, and the patches that the Hugging Face processor gives."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perception_r1_jax.processing.images import PictureError, PictureProcessor, open_picture
from perception_r1_jax.weights.random_checkpoint import PREPROCESSOR


@pytest.fixture
def directory(tmp_path) -> Path:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return tmp_path


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def encode(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_patches_are_the_normalised_pixels_by_merge_unit(directory):
    picture = noise(112, 84)
    patches, grid = PictureProcessor.from_directory(directory)(encode(picture))
    assert grid.tolist() == [1, 6, 8]
    assert patches.shape == (48, 1176)
    assert patches.dtype == np.float32
    pixels = (np.asarray(picture) / 255 - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]
    sixth = pixels[:14, 42:56]  # the second merge unit's upper right patch: row 0, column 3
    np.testing.assert_allclose(
        patches[5].reshape(3, 2, 14, 14), sixth.transpose(2, 0, 1)[:, None].repeat(2, 1), atol=1e-5
    )


@pytest.mark.parametrize(("width", "height", "grid"), [(1, 1, (4, 4)), (3, 500, (52, 2)), (100, 75, (6, 8))])
def test_small_and_long_pictures_are_enlarged(directory, width, height, grid):
    assert tuple(PictureProcessor.from_directory(directory)(encode(noise(width, height)))[1][1:]) == grid


def test_limits_replace_the_directory_s(directory):
    picture = encode(noise(640, 480))
    _, small = PictureProcessor.from_directory(directory, max_pixels=50_000)(picture)
    _, large = PictureProcessor.from_directory(directory, min_pixels=1_000_000)(picture)
    assert small.prod() * 196 <= 50_000 < 640 * 480 < 1_000_000 <= large.prod() * 196


def test_transformers_5_layouts_give_the_same(directory, tmp_path):
    newer = {key: value for key, value in PREPROCESSOR.items() if "pixels" not in key}
    newer["size"] = {"shortest_edge": 3136, "longest_edge": 12845056}
    picture = encode(noise(200, 100))
    expected, _ = PictureProcessor.from_directory(directory, max_pixels=10_000)(picture)
    for name, content in ("preprocessor_config.json", newer), ("processor_config.json", {"image_processor": newer}):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_text(json.dumps(content))
        np.testing.assert_array_equal(PictureProcessor.from_directory(folder, max_pixels=10_000)(picture)[0], expected)


def test_paper_fidelity_resizes_to_integer_sides_first(directory):
    picture = noise(301, 200)
    paper = PictureProcessor.from_directory(directory, max_pixels=20_000, fidelity="paper")
    plain = PictureProcessor.from_directory(directory)
    factor = (20_000 / (301 * 200)) ** 0.5
    by_hand = picture.resize((int(301 * factor), int(200 * factor)))
    np.testing.assert_array_equal(paper(encode(picture))[0], plain(encode(by_hand))[0])
    inside = encode(noise(100, 100))
    np.testing.assert_array_equal(paper(inside)[0], plain(inside)[0])


def test_transparency_is_put_on_white():
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.putpixel((1, 2), (10, 20, 30, 255))
    opened = open_picture(encode(picture))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 2)) == (10, 20, 30)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "LA"])
def test_other_modes_become_rgb(mode):
    opened = open_picture(encode(noise(16, 8).convert(mode), "TIFF"))
    assert opened.mode == "RGB"
    assert opened.size == (16, 8)


def test_the_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert open_picture(encode(noise(16, 8), "JPEG", exif=exif)).size == (8, 16)


def test_bytes_and_path_agree(tmp_path):
    path = tmp_path / "a.png"
    noise(20, 30).save(path)
    assert open_picture(path).tobytes() == open_picture(path.read_bytes()).tobytes()


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", encode(noise(64, 64))[:-3000]], ids=["empty", "text", "cut"]
)
def test_damaged_pictures_are_named(tmp_path, content):
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(PictureError, match=r"corrupt image .*damaged.png"):
        open_picture(path)


def test_any_damaged_byte_is_a_picture_or_a_picture_error():
    content = encode(noise(24, 24), "JPEG")
    for place in range(0, len(content), 7):
        with contextlib.suppress(PictureError):
            damaged = content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :]
            assert open_picture(damaged).mode == "RGB"


def test_absent_pictures_are_named(tmp_path):
    with pytest.raises(PictureError, match=r"absent image .*gone.png"):
        open_picture(tmp_path / "gone.png")


def test_a_folder_is_called_so(tmp_path):
    with pytest.raises(PictureError, match=rf"image is a folder .{tmp_path}"):
        open_picture(tmp_path)


@pytest.mark.parametrize("fidelity", ["default", "paper"])
@pytest.mark.parametrize("size", [(1, 1), (3, 500), (640, 480), (97, 1201), (2000, 1500), (28, 5600)])
def test_the_grid_of_the_header_is_that_of_the_decoded_picture(directory, size, fidelity):
    pictures = PictureProcessor.from_directory(directory, min_pixels=9_000, max_pixels=200_000, fidelity=fidelity)
    picture = encode(Image.new("RGB", size))
    assert pictures.read_grid(picture).tolist() == pictures(picture)[1].tolist()


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_the_grids_of_the_320_diagrams_are_known_from_their_headers(shared_data, fidelity):
    limits = {"max_pixels": 60_000, "fidelity": fidelity}
    pictures = PictureProcessor.from_directory(shared_data / "qwen2_5_vl_tokenizer", **limits)
    paths = sorted((shared_data / "geometry3k" / "images").glob("*/*.png"))
    assert len(paths) >= 320
    for path in paths:
        assert pictures.read_grid(path).tolist() == pictures(path)[1].tolist(), path


def test_the_grid_of_the_header_may_lie_on_its_side(directory):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture, pictures = encode(noise(112, 84), "JPEG", exif=exif), PictureProcessor.from_directory(directory)
    assert pictures.read_grid(picture).tolist() == [1, 6, 8]
    assert pictures(picture)[1].tolist() == [1, 8, 6]


def test_reading_the_grid_decodes_no_pixel(directory):
    assert PictureProcessor.from_directory(directory).read_grid(encode(noise(112, 84))[:200]).tolist() == [1, 6, 8]


def test_sixteen_bit_grey_is_refused_since_it_would_turn_white():
    with pytest.raises(PictureError, match=r"unsupported image mode .*I;16"):
        open_picture(encode(Image.fromarray(np.full((8, 8), 4000, np.uint16))))


@pytest.mark.parametrize("fidelity", ["default", "paper"])
def test_extreme_ratios_are_refused(directory, fidelity):
    pictures = PictureProcessor.from_directory(directory, fidelity=fidelity)
    for read in (pictures, pictures.read_grid):
        with pytest.raises(PictureError, match=r"image of unusable size .*ratio"):
            read(encode(noise(1, 201)))


def test_a_side_that_the_authors_resize_cuts_to_nothing_is_refused(directory):
    pictures = PictureProcessor.from_directory(directory, min_pixels=1, max_pixels=100, fidelity="paper")
    for read in (pictures, pictures.read_grid):
        with pytest.raises(PictureError, match="image of unusable size"):
            read(encode(noise(1, 150)))


def test_directories_that_cannot_serve_are_errors(tmp_path, directory):
    with pytest.raises(ValueError, match="min_pixels 500 and max_pixels 400"):
        PictureProcessor.from_directory(directory, min_pixels=500, max_pixels=400)
    (directory / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSOR, "merge_size": 4}))
    with pytest.raises(ValueError, match="merge_size 4"):
        PictureProcessor.from_directory(directory)
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config.json"):
        PictureProcessor.from_directory(tmp_path)
