"""Boxes, points, maps and masks drawn onto images, and sheets of them.

Every function takes an RGB uint8 image and returns a new one: nothing is drawn in place, nothing is
read but the arguments, and the same arguments give the same pixels. Lines lie on a dark casing, so that
they can be told from any background and not by hue alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stages.core.artifacts.files import atomic_path
from stages.core.viz.fonts import legible
from stages.core.viz.palette import SOURCE_COLORS, TRUTH_COLOR, Color, class_color, ink_on

__all__ = [
    "SOURCE_COLORS",
    "TRUTH_COLOR",
    "Color",
    "class_color",
    "contact_sheet",
    "draw_boxes",
    "draw_points",
    "encode_jpeg",
    "enlarged",
    "overlay_map",
    "overlay_masks",
    "save_png",
]

Picture = NDArray[np.uint8]
Colors = Color | Sequence[Color]
CASING: Color = (20, 20, 20)
_SHIFT = 4  # cv2 takes fixed-point coordinates: 4 fractional bits
FAR = 1e6  # as good as infinity, and inside cv2's 32-bit fixed point
_Rect = tuple[float, float, float, float]


def draw_boxes(
    image: Picture,
    boxes_xyxy: NDArray[Any],
    colors: Colors,
    labels: Sequence[str] | None = None,
    thickness: int = 2,
    *,
    casing: bool = True,
) -> Picture:
    """Draw boxes, the first one last so that it lies on top, then their labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes_xyxy: (n, 4) half-open pixels; parts outside the image are not shown.
        colors: One colour, or one per box.
        labels: One text per box; an empty text draws no label.
        thickness: Width of the coloured line in pixels.
        casing: Lay lines on a dark casing; better without for hundreds of boxes.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    ink = _per_item(colors, len(boxes))
    canvas = _copy(image)
    for box, color in reversed(list(zip(boxes, ink, strict=True))):
        # Half-open pixels: the last pixel covered is x2 - 1, and pixel centres are whole numbers to cv2.
        # Upright lines are sharper on whole pixels than anti-aliased.
        x1, y1, x2, y2 = (round(v) for v in np.clip(box - (0, 0, 1, 1), -FAR, FAR).tolist())
        if casing:
            cv2.rectangle(canvas, (x1, y1), (x2, y2), CASING, thickness + 2, cv2.LINE_8)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness, cv2.LINE_8)
    if labels is None:
        return canvas
    assert len(labels) == len(boxes), "one label per box"
    return _with_labels(canvas, boxes, ink, labels)


def draw_points(image: Picture, xy: NDArray[Any], colors: Colors, radius: int = 4) -> Picture:
    """Draw points as discs with a white rim, the first one on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        xy: (n, 2) pixels; pixel (0, 0) spans [0, 1).
        colors: One colour, or one per point.
        radius: Radius of the coloured disc in pixels.
    """
    points = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    canvas = _copy(image)
    ink = _per_item(colors, len(points))
    for point, color in reversed(list(zip(points, ink, strict=True))):
        x, y = _fixed(point - 0.5)
        for disc_color, grow in ((CASING, 2), ((255, 255, 255), 1), (color, 0)):
            cv2.circle(canvas, (x, y), (radius + grow) << _SHIFT, disc_color, -1, cv2.LINE_AA, _SHIFT)
    return canvas


def overlay_map(image: Picture, map_hw: NDArray[Any], alpha: float = 0.75) -> Picture:
    """Lay a map over an image: the picture fades to gray where the map is low, and glows where it is high.

    Args:
        image: (H, W, 3) uint8 RGB.
        map_hw: (h, w) of any size, values in [0, 1]; it covers the image exactly.
        alpha: Weight of the colours at value 1.
    """
    height, width = image.shape[:2]
    values = np.clip(np.nan_to_num(np.asarray(map_hw, dtype=np.float32)), 0.0, 1.0)
    smooth = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
    heat = cv2.applyColorMap(np.round(smooth * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    gray = image.astype(np.float32).mean(axis=2, keepdims=True)
    base = 0.35 * image + 0.65 * (0.8 * gray)
    weight = (alpha * np.sqrt(smooth))[..., None]
    return _rounded(base * (1 - weight) + heat * weight)


def overlay_masks(image: Picture, masks: NDArray[Any], colors: Colors, alpha: float = 0.45) -> Picture:
    """Tint masks and trace their outlines, the first one on top.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (n, H, W), true or non-zero inside.
        colors: One colour, or one per mask.
        alpha: Weight of the tint.
    """
    inside = np.asarray(masks).astype(bool).reshape(-1, *image.shape[:2])
    ink = _per_item(colors, len(inside))
    canvas = _copy(image)
    for mask, color in reversed(list(zip(inside, ink, strict=True))):
        tint = np.asarray(color, dtype=np.float32)
        canvas[mask] = _rounded(canvas[mask] * (1 - alpha) + tint * alpha)
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, outlines, -1, CASING, 4, cv2.LINE_AA)
        cv2.drawContours(canvas, outlines, -1, color, 2, cv2.LINE_AA)
    return canvas


def enlarged(image: Picture, side: int = 480) -> tuple[Picture, float]:
    """Scale so that the longer side is ``side`` pixels, and say by how much coordinates grow.

    Small images carry no legible label; draw on the enlarged one instead.
    """
    factor = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    how = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, size, interpolation=how), dtype=np.uint8), factor


def contact_sheet(
    images: Sequence[Picture],
    columns: int,
    pad: int = 8,
    titles: Sequence[str] | None = None,
    background: Color = (250, 250, 248),
) -> Picture:
    """Lay pictures out in rows of ``columns``, each centred in a cell as large as the largest of them.

    Args:
        images: (H, W, 3) uint8 RGB, sizes may differ; at least one.
        columns: Cells in a row.
        pad: Pixels around cells.
        titles: One text above each picture.
        background: Colour between pictures.
    """
    assert images, "a sheet needs pictures"
    assert columns > 0, "a sheet needs columns"
    assert titles is None or len(titles) == len(images), "one title per picture"
    height, width = max(i.shape[0] for i in images), max(i.shape[1] for i in images)
    size = int(np.clip(width / 18, 11, 22))
    head = round(size * 1.7) if titles is not None else 0
    across = min(columns, len(images))
    down = -(-len(images) // across)
    sheet = np.empty((down * (height + head + pad) + pad, across * (width + pad) + pad, 3), np.uint8)
    sheet[:] = background
    drawn: list[tuple[str, float, float]] = []
    for place, image in enumerate(images):
        row, column = divmod(place, across)
        top, left = pad + row * (height + head + pad), pad + column * (width + pad)
        y, x = top + head + (height - image.shape[0]) // 2, left + (width - image.shape[1]) // 2
        sheet[y : y + image.shape[0], x : x + image.shape[1]] = image
        if titles is not None:
            drawn.append((titles[place], left + 1, top + head * 0.45))
    if not drawn:
        return sheet
    page = Image.fromarray(sheet)
    pen = ImageDraw.Draw(page)
    for text, x, y in drawn:
        shown, font = legible(text, size)
        pen.text((x, y), shown, fill=ink_on(background), font=font, anchor="lm")
    return np.asarray(page, dtype=np.uint8)


def save_png(path: Path, image: Picture) -> None:
    """Write an RGB picture as PNG, whole or not at all; the same pixels give the same bytes."""
    data = _encode(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def encode_jpeg(image: Picture, quality: int = 82) -> bytes:
    """An RGB picture as JPEG bytes, for pages that carry their pictures with them."""
    return _encode(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1])


def _encode(image: Picture, suffix: str, options: list[int]) -> bytes:
    good, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    assert good, f"cv2 cannot encode {suffix}"
    return bytes(data.tobytes())


def _copy(image: Picture) -> Picture:
    assert image.dtype == np.uint8, f"uint8 expected, got {image.dtype}"
    assert image.shape[2:] == (3,), f"(H, W, 3) expected, got {image.shape}"
    return np.ascontiguousarray(image).copy()


def _rounded(values: NDArray[Any]) -> Picture:
    whole: Picture = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return whole


def _fixed(values: NDArray[np.float64]) -> list[int]:
    return [int(v) for v in np.rint(np.clip(values, -FAR, FAR) * (1 << _SHIFT))]


def _per_item(colors: Colors, count: int) -> list[Color]:
    if len(colors) == 3 and isinstance(colors[0], int):
        return [colors] * count  # type: ignore[list-item]
    many: list[Color] = list(colors)  # type: ignore[arg-type]
    assert len(many) == count, f"{len(many)} colours for {count} items"
    return many


def _with_labels(
    canvas: Picture, boxes: NDArray[np.float64], colors: Sequence[Color], labels: Sequence[str]
) -> Picture:
    height, width = canvas.shape[:2]
    size = int(np.clip(max(height, width) / 25, 9, 30))
    page = Image.fromarray(canvas)
    pen = ImageDraw.Draw(page)
    placed: list[_Rect] = []
    for box, color, label in zip(boxes, colors, labels, strict=True):
        text, font = legible(label, size)
        if not text:
            continue
        margin = size * 0.25
        wide, high = pen.textlength(text, font=font) + 2 * margin, size * 1.3
        chip = _label_place(box, wide, high, (width, height), placed)
        placed.append(chip)
        pen.rounded_rectangle(chip, radius=size * 0.2, fill=color, outline=CASING)
        pen.text(
            (chip[0] + margin, (chip[1] + chip[3]) / 2), text, fill=ink_on(color), font=font, anchor="lm"
        )
    return np.asarray(page, dtype=np.uint8)


def _label_place(
    box: NDArray[np.float64], wide: float, high: float, size: tuple[int, int], placed: Sequence[_Rect]
) -> _Rect:
    """The first of: above, inside top, inside bottom, below the box, that hides no earlier label."""
    width, height = size
    x1, y1, x2, y2 = (float(v) for v in box)
    tops = (y1 - high, y1, y2 - high, y2)
    lefts = (x1, x2 - wide)
    options: list[_Rect] = []
    for top in tops:
        for left in lefts:
            x, y = (
                min(max(left, 0.0), max(width - wide - 1, 0.0)),
                min(max(top, 0.0), max(height - high - 1, 0.0)),
            )
            options.append((x, y, x + wide, y + high))
    for option in options:
        if not any(_touch(option, other) for other in placed):
            return option
    return options[0]


def _touch(a: _Rect, b: _Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
