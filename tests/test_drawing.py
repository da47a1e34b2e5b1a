"""Pictures: nothing is drawn in place, colours land where they should, files appear whole."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFont

from stages.core.errors import EnvironmentFault
from stages.core.viz import fonts
from stages.core.viz.drawing import (
    contact_sheet,
    draw_boxes,
    draw_points,
    encode_jpeg,
    enlarged,
    overlay_map,
    overlay_masks,
    save_png,
)
from stages.core.viz.palette import SOURCE_COLORS, class_color, ink_on

GREEN = (0, 158, 115)


def plain(height: int = 60, width: int = 80, value: int = 128) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, dtype=np.uint8)


def decoded(data: bytes) -> NDArray[Any]:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert bgr is not None
    return bgr[..., ::-1]


def test_drawing__inputs_are_left_alone() -> None:
    image, boxes, xy = plain(), np.array([[5.0, 5.0, 40.0, 30.0]]), np.array([[20.0, 20.0]])
    masks, heat = np.ones((1, 60, 80), dtype=bool), np.ones((6, 8))
    before = [a.copy() for a in (image, boxes, xy, masks, heat)]
    pictures = [
        draw_boxes(image, boxes, GREEN, ["cat"]),
        draw_points(image, xy, GREEN),
        overlay_map(image, heat),
        overlay_masks(image, masks, GREEN),
        contact_sheet([image, image], 2, titles=["a", "b"]),
    ]
    for array, old in zip((image, boxes, xy, masks, heat), before, strict=True):
        np.testing.assert_array_equal(array, old)
    assert all(p.dtype == np.uint8 and not np.shares_memory(p, image) for p in pictures)


def test_drawing__read_only_and_mirrored_views_are_accepted() -> None:
    image = plain()[:, ::-1]
    image.flags.writeable = False
    assert draw_boxes(image, np.array([[5, 5, 40, 30]]), GREEN).shape == image.shape


def test_draw_boxes__line_lies_on_the_last_pixel_inside() -> None:
    picture = draw_boxes(plain(), np.array([[10.0, 20.0, 50.0, 40.0]]), GREEN, thickness=1)
    coloured = np.argwhere((picture == GREEN).all(axis=2))
    assert coloured.min(axis=0).tolist() == [20, 10]
    assert coloured.max(axis=0).tolist() == [39, 49]


@pytest.mark.parametrize(
    "boxes",
    [
        np.zeros((0, 4)),  # nothing to draw
        np.array([[-50.0, -50.0, -10.0, -10.0]]),  # wholly outside
        np.array([[1e9, 1e9, 2e9, 2e9]]),  # beyond cv2's fixed point
    ],
)
def test_draw_boxes__nothing_visible_changes_nothing(boxes: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(draw_boxes(plain(), boxes, GREEN), plain())


def test_draw_boxes__first_box_lies_on_top() -> None:
    same = np.array([[10.0, 10.0, 50.0, 40.0]] * 2)
    picture = draw_boxes(plain(), same, [GREEN, (230, 159, 0)], thickness=1)
    assert tuple(picture[10, 30]) == GREEN


def test_draw_boxes__labels_of_equal_boxes_do_not_hide_each_other() -> None:
    image = plain(300, 300)
    boxes = np.array([[50.0, 100.0, 250.0, 250.0]] * 2)
    both = draw_boxes(image, boxes, [GREEN, (230, 159, 0)], ["first", "second"])
    for index, color in enumerate((GREEN, (230, 159, 0))):
        texts = ["", ""]
        texts[index] = ("first", "second")[index]
        alone = draw_boxes(image, boxes, [GREEN, (230, 159, 0)], texts)
        assert (both == color).all(axis=2).sum() >= 0.9 * (alone == color).all(axis=2).sum()


def test_draw_boxes__accents_are_drawn_as_plain_letters() -> None:
    boxes = np.array([[10.0, 30.0, 70.0, 55.0]])
    accented = draw_boxes(plain(), boxes, GREEN, ["caf\u00e9"])
    np.testing.assert_array_equal(accented, draw_boxes(plain(), boxes, GREEN, ["cafe"]))


def test_draw_points__centre_has_the_colour() -> None:
    picture = draw_points(plain(), np.array([[30.5, 20.5]]), GREEN, radius=3)
    assert tuple(picture[20, 30]) == GREEN
    assert (picture[20, 40] == 128).all()


def test_overlay_map__glows_where_the_map_is_high() -> None:
    heat = np.zeros((2, 2))
    heat[0, 1] = 1.0
    picture = overlay_map(plain(), heat, alpha=1.0).astype(int)
    assert picture[5, 75].sum() > picture[55, 5].sum() + 100
    assert np.ptp(picture[55, 5]) == 0, "a low gray stays gray"


def test_overlay_map__nan_is_low() -> None:
    np.testing.assert_array_equal(
        overlay_map(plain(), np.full((3, 3), np.nan)), overlay_map(plain(), np.zeros((3, 3)))
    )


def test_overlay_masks__outside_is_untouched() -> None:
    mask = np.zeros((1, 60, 80), dtype=np.uint8)
    mask[0, 20:40, 20:40] = 1
    picture = overlay_masks(plain(), mask, GREEN, alpha=0.5)
    assert (picture[:15] == 128).all()
    assert (picture[:, 50:] == 128).all()
    assert tuple(picture[30, 30]) == (64, 143, 122)


def test_contact_sheet__places_in_reading_order() -> None:
    shades = [plain(10, 20, value) for value in (10, 20, 30)]
    sheet = contact_sheet(shades, columns=2, pad=4)
    assert sheet.shape == (2 * 14 + 4, 2 * 24 + 4, 3)
    assert [int(sheet[y, x, 0]) for y, x in ((8, 10), (8, 35), (22, 10))] == [10, 20, 30]
    assert tuple(sheet[22, 35]) == (250, 250, 248)


def test_enlarged__factor_maps_coordinates() -> None:
    picture, factor = enlarged(plain(64, 128), side=512)
    assert picture.shape == (256, 512, 3)
    assert factor == pytest.approx(4.0)


def test_save_png__round_trip_and_equal_bytes(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (9, 11, 3), dtype=np.uint8)
    for name in ("a.png", "b.png"):
        save_png(tmp_path / name, image)
    np.testing.assert_array_equal(decoded((tmp_path / "a.png").read_bytes()), image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_save_png__folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "viz").write_text("in the way")
    with pytest.raises((EnvironmentFault, FileExistsError)):
        save_png(tmp_path / "viz" / "a.png", plain())


def test_encode_jpeg__keeps_red_red() -> None:
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    image[..., 0] = 255
    red, _, blue = decoded(encode_jpeg(image))[8, 8]
    assert red > 240 > 15 > blue


def test_class_color__a_hundred_classes_are_distinct() -> None:
    colors = [class_color(i) for i in range(100)]
    assert len(set(colors)) == 100
    for first, second in itertools.pairwise(colors):
        assert np.abs(np.subtract(first, second)).sum() > 60


@pytest.mark.parametrize("color", [*SOURCE_COLORS.values(), (255, 255, 255), (0, 0, 0)])
def test_ink_on__contrast_is_readable(color: tuple[int, int, int]) -> None:
    def luminance(rgb: tuple[int, int, int]) -> float:
        channels = [(c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4) for c in rgb]
        return 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]

    dark, light = sorted((luminance(color), luminance(ink_on(color))))
    assert (light + 0.05) / (dark + 0.05) >= 4.0


def test_draw_boxes__other_scripts_in_a_font_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not boxes: words of equal length would look alike."""
    boxes = np.array([[2.0, 2.0, 60.0, 50.0]])

    def label(text: str) -> NDArray[np.uint8]:
        return draw_boxes(plain(), boxes, GREEN, [text])

    monkeypatch.setattr(fonts, "FOLDERS", ())
    fonts._candidates.cache_clear()
    np.testing.assert_array_equal(label("\u043a\u043e\u0442"), label("???"))  # no font at all
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setenv("WEAKSAM_FONT", str(dejavu))
    assert (label("\u043a\u043e\u0442") != label("\u0434\u043e\u043c")).any()
    np.testing.assert_array_equal(label("cat \u732b"), label("cat ?"))  # it has no Chinese
    monkeypatch.delenv("WEAKSAM_FONT")
    monkeypatch.setattr(fonts, "FOLDERS", (str(dejavu.parent),))
    fonts._candidates.cache_clear()
    text, font = fonts.legible("\u043a\u043e\u0442", 12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert (text, font.getname()[0]) == ("\u043a\u043e\u0442", "DejaVu Sans")
    fonts._candidates.cache_clear()


def test_legible__a_variable_that_names_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEAKSAM_FONT", __file__)
    with pytest.raises(EnvironmentFault, match="cannot be read as a font"):
        fonts.legible("\u732b", 12)
