"""The image loader on what real folders hold: odd modes, lying names, sideways photos, damaged files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFile

from stages.core.datasets import images
from stages.core.datasets.images import image_size, load_image
from stages.core.errors import ImageError
from tests.datasets_builders import make_image

RAMP_HW = np.tile(np.arange(0, 240, 4, dtype=np.uint8), (40, 1))
"""40 x 60 gray ramp from left to right."""

# EXIF orientation -> what a viewer does to the stored pixels.
TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def rgb_HWC() -> NDArray[np.uint8]:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:20, :30] = (250, 10, 10)
    pixels[20:, :30] = (10, 250, 10)
    pixels[:20, 30:] = (10, 10, 250)
    return pixels


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", list(TURNS))
def test_load_image__applies_exif_orientation_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"quality": 100} if suffix in ("jpg", "webp") else {}
    Image.fromarray(rgb_HWC()).save(path, exif=exif, **options)
    expected = TURNS[orientation](rgb_HWC())
    loaded = load_image(path)
    assert loaded.shape == expected.shape
    # Chroma subsampling blurs borders only.
    assert np.median(np.abs(loaded.astype(int) - expected)) <= 3
    assert (np.abs(loaded.astype(int) - expected).max(axis=2) < 40).mean() > 0.9
    assert image_size(path) == expected.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_load_image__ignores_orientation_out_of_range(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(rgb_HWC()).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (40, 60, 3)
    assert image_size(tmp_path / "a.jpg") == (40, 60)


def test_load_image__broken_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.fromarray(rgb_HWC()).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00garbage that is no TIFF header")
    assert load_image(tmp_path / "a.jpg").shape == (40, 60, 3)


def test_load_image__png_named_jpg(tmp_path: Path) -> None:
    Image.fromarray(rgb_HWC()).save(tmp_path / "a.jpg", format="PNG")
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg"), rgb_HWC())


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "I", "I;16", "F", "YCbCr"])
def test_load_image__any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("F", "I", "CMYK", "YCbCr") else "a.png")
    if mode == "I;16":
        image = Image.fromarray(RAMP_HW.astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(RAMP_HW.astype(np.int32) * 257)
    elif mode == "F":
        image = Image.fromarray(RAMP_HW.astype(np.float32) / 255)
    elif mode == "P":
        image = Image.fromarray(RAMP_HW).quantize(256)
    else:
        image = Image.fromarray(np.repeat(RAMP_HW[:, :, None], 3, axis=2)).convert(mode)
    image.save(path)
    loaded = load_image(path)
    assert (loaded.shape, loaded.dtype, loaded.flags.c_contiguous) == ((40, 60, 3), np.dtype(np.uint8), True)
    tolerance = 255 if mode == "1" else 3
    assert np.abs(loaded.astype(int) - RAMP_HW[:, :, None]).max() <= tolerance
    assert loaded[:, -1].mean() > loaded[:, 0].mean() + 100


def test_load_image__transparent_pixels_lie_over_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded[0, 0].tolist() == [200, 0, 0]
    assert loaded[3, 3].tolist() == [255, 255, 255]


def damaged(folder: Path, case: str) -> Path:
    path = folder / "bad.jpg"
    if case == "missing":
        return path
    if case == "empty":
        path.write_bytes(b"")
    elif case == "text":
        path.write_text("<html>404 Not Found</html>")
    elif case == "folder":
        path.mkdir()
    elif case == "eps":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    elif case == "negative":
        Image.fromarray(np.full((4, 4), -5, np.int32)).save(path, format="TIFF")
    else:
        whole = make_image(folder / f"whole.{case}", width=200, height=200).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    return path


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("missing", "does not exist"),
        ("empty", "zero bytes"),
        ("text", "not an image"),
        ("folder", "cannot be read"),
        ("eps", "not an image"),
        ("negative", "negative"),
        ("jpg", "truncated"),
        ("png", "cannot be read|damaged"),
        ("bmp", "truncated"),
        ("webp", "cannot be read|damaged|not an image"),
        ("gif", "truncated"),
    ],
)
def test_load_image__damage_is_an_image_error_naming_the_file(tmp_path: Path, case: str, reason: str) -> None:
    path = damaged(tmp_path, case)
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:image file could not be identified")
def test_load_image__random_damage_raises_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "tif", "webp", "bmp", "gif"):
        whole = np.frombuffer(make_image(tmp_path / f"a.{suffix}").read_bytes(), np.uint8)
        for _ in range(60):
            bad = whole.copy()
            bad[rng.integers(0, min(len(bad), 300), 4)] = rng.integers(0, 256, 4)
            (tmp_path / "bad").write_bytes(bad.tobytes())
            for read in (load_image, image_size):
                try:
                    read(tmp_path / "bad")
                except ImageError:
                    continue


def test_load_image__refuses_a_decompression_bomb_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 48 * 32 - 1)
    for read in (load_image, image_size):
        with pytest.raises(ImageError, match="absurd size: 48 x 32"):
            read(path)


def test_load_image__pillows_own_bomb_guard_is_an_image_error(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.ppm"
    bomb.write_bytes(b"P6 60000 60000 255\n\x00")
    with pytest.raises(ImageError, match="absurd size"):
        load_image(bomb)
