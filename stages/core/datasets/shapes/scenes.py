"""Scenes of the embedded `shapes` set: figures composed on textured backgrounds, with exact visible masks.

Colour, texture, orientation and size are drawn independently of the class. An object's mask is what remains visible
of it: later objects hide earlier ones, and objects of no class hide too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.core.datasets.shapes.figures import CLASS_FIGURES, DISTRACTORS, Figure, Polygon

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

CLASSES: tuple[str, ...] = tuple(CLASS_FIGURES)

LONG_SIDE = (224, 256)
SHORT_SIDE = (184, 256)
OBJECT_SIZE = (38.0, 124.0)
"""Smallest and largest object extent, in pixels (a factor above 3, after rotation)."""
SUPERSAMPLING = 3
MARK_MISSING = 0.12
"""Share of objects drawn without their mark, so that the silhouette is worth learning too."""
CROWDED = 0.35
"""Share of scenes in which things may hide one another."""
MIN_VISIBLE = 0.6
"""In a crowded scene everything keeps at least this share of its area."""
MIN_AREA = 300
"""Visible pixels that everything keeps in every scene."""
MAX_ATTEMPTS = 60


@dataclass(frozen=True)
class DrawnObject:
    """One object of a class: its index in `CLASSES`, its visible mask [H, W], whether the border cuts it."""

    label: int
    mask: Mask
    truncated: bool
    occluded: bool


@dataclass(frozen=True)
class Scene:
    """An RGB image [H, W, 3] uint8 and the objects on it."""

    image: NDArray[np.uint8]
    objects: tuple[DrawnObject, ...]


@dataclass(frozen=True)
class _Placement:
    """A figure with its place; label is None for a distractor."""

    figure: Figure
    label: int | None
    affine: NDArray[np.float64]
    alpha: Image
    share_inside: float


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one scene: 1-6 objects of 1-3 classes, 0-3 distractors, some occlusion and truncation."""
    height, width = _image_size(rng)
    image = _background(rng, height, width)
    base = image.mean(axis=(0, 1))
    placements = _place_all(rng, height, width)
    for placement in placements:
        _paint(rng, image, placement, base)
    noise = rng.normal(0.0, rng.uniform(0.004, 0.02), image.shape)
    pixels = np.clip((image + noise) * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return Scene(pixels, _visible_objects(placements))


def _image_size(rng: np.random.Generator) -> tuple[int, int]:
    long_side = int(rng.integers(LONG_SIDE[0], LONG_SIDE[1] + 1))
    short_side = int(rng.integers(SHORT_SIDE[0], long_side + 1))
    return (long_side, short_side) if rng.random() < 0.35 else (short_side, long_side)


def _labels(rng: np.random.Generator) -> list[int]:
    """Draw the classes of a scene's objects: 1-3 classes, 1-6 objects, repeats are common."""
    n_objects = int(rng.choice([1, 2, 3, 4, 5, 6], p=[0.12, 0.22, 0.24, 0.20, 0.13, 0.09]))
    n_classes = min(n_objects, int(rng.choice([1, 2, 3], p=[0.40, 0.40, 0.20])))
    classes = rng.choice(len(CLASSES), size=n_classes, replace=False)
    repeats = rng.choice(classes, size=n_objects - n_classes)
    labels = [int(label) for label in (*classes, *repeats)]
    rng.shuffle(labels)
    return labels


def _place_all(rng: np.random.Generator, height: int, width: int) -> list[_Placement]:
    """Place objects and distractors, back to front; things that do not fit are left out (never the first)."""
    figures = list(CLASS_FIGURES.values())
    labels = _labels(rng)
    wanted: list[tuple[Figure, int | None]] = [(figures[label], label) for label in labels]
    wanted += [
        (DISTRACTORS[int(rng.integers(len(DISTRACTORS)))], None) for _ in range(int(rng.integers(0, 4)))
    ]
    largest = min(OBJECT_SIZE[1], math.sqrt(height * width / len(wanted)))
    min_visible = MIN_VISIBLE if rng.random() < CROWDED else 0.95
    placed: list[_Placement] = []
    for figure, label in wanted:
        for attempt in range(MAX_ATTEMPTS):
            cap = max(OBJECT_SIZE[0] * 1.1, largest * (1.0 - 0.6 * attempt / MAX_ATTEMPTS))
            candidate = _place(rng, figure, label, height, width, cap)
            if candidate.share_inside > 0.8 and _keeps_all_visible([*placed, candidate], min_visible):
                placed.append(candidate)
                break
    shuffled = [placed[index] for index in rng.permutation(len(placed))]
    return shuffled if _keeps_all_visible(shuffled, min_visible) else placed


def _place(
    rng: np.random.Generator, figure: Figure, label: int | None, height: int, width: int, largest: float
) -> _Placement:
    size = math.exp(rng.uniform(math.log(OBJECT_SIZE[0]), math.log(largest)))
    aspect = math.exp(rng.uniform(-0.16, 0.16))
    turn = rng.uniform(-0.6, 0.6)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = rotation @ np.diag([flip * aspect, 1.0 / aspect])
    corners = np.concatenate(figure.body) @ linear.T
    linear *= size / math.sqrt(float(np.prod(np.ptp(corners, axis=0))))
    centre = np.array([rng.uniform(0.08, 0.92) * width, rng.uniform(0.08, 0.92) * height])
    affine = np.concatenate([linear, centre[:, None]], axis=1)
    alpha, share_inside = _silhouette(figure, affine, height, width)
    return _Placement(figure, label, affine, alpha, share_inside)


def _silhouette(figure: Figure, affine: NDArray[np.float64], height: int, width: int) -> tuple[Image, float]:
    """Return the figure's coverage [H, W] in [0, 1] and the share of its area that lies inside the image."""
    margin = 40
    shifted = affine + np.array([[0.0, 0.0, margin], [0.0, 0.0, margin]])
    padded = _coverage(figure.body, shifted, height + 2 * margin, width + 2 * margin)
    for hole in figure.holes:
        padded = padded * (1.0 - _coverage((hole,), shifted, *padded.shape))
    inside = padded[margin:-margin, margin:-margin]
    return np.ascontiguousarray(inside), float(inside.sum() / max(padded.sum(), 1e-6))


def _coverage(polygons: tuple[Polygon, ...], affine: NDArray[np.float64], height: int, width: int) -> Image:
    """Rasterise a union of polygons with supersampling, inside its own bounding box only."""
    points = [shape @ affine[:, :2].T + affine[:, 2] for shape in polygons]
    low = np.floor(np.min([p.min(axis=0) for p in points], axis=0)).astype(int) - 1
    high = np.ceil(np.max([p.max(axis=0) for p in points], axis=0)).astype(int) + 1
    x0, y0 = np.clip(low, 0, [width, height])
    x1, y1 = np.clip(high, 0, [width, height])
    canvas = np.zeros((height, width), np.float32)
    if x1 <= x0 or y1 <= y0:
        return canvas
    fine = np.zeros(((y1 - y0) * SUPERSAMPLING, (x1 - x0) * SUPERSAMPLING), np.uint8)
    for shape in points:
        # Pixel centres: a point at x lies in the middle of fine pixel x * S - 0.5.
        corners = np.round(((shape - [x0, y0]) * SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(fine, [corners], 255, shift=4)
    small = cv2.resize(fine, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
    canvas[y0:y1, x0:x1] = small.astype(np.float32) / 255.0
    return canvas


def _keeps_all_visible(placements: list[_Placement], min_visible: float) -> bool:
    """Tell whether everything keeps the share `min_visible` of its area under the things in front of it."""
    hidden = np.zeros(placements[0].alpha.shape, bool)
    for placement in reversed(placements):
        mask = placement.alpha > 0.5
        visible = int(np.count_nonzero(mask & ~hidden))
        if visible < min_visible * np.count_nonzero(mask) or visible < MIN_AREA:
            return False
        hidden |= mask
    return True


def _visible_objects(placements: list[_Placement]) -> tuple[DrawnObject, ...]:
    hidden = np.zeros(placements[0].alpha.shape, bool)
    objects: list[DrawnObject] = []
    for placement in reversed(placements):
        mask = placement.alpha > 0.5
        if placement.label is not None:
            visible = mask & ~hidden
            occluded = int(visible.sum()) < 0.95 * int(mask.sum())
            objects.append(DrawnObject(placement.label, visible, placement.share_inside < 0.99, occluded))
        hidden |= mask
    return tuple(reversed(objects))


def _random_colour(rng: np.random.Generator, saturation: tuple[float, float] = (0.15, 0.95)) -> Image:
    hsv = np.array([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(0.25, 0.98)]]], np.float32)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], dtype=np.float32)


def _colour_away_from(rng: np.random.Generator, others: list[Image], distance: float) -> Image:
    """Draw a colour at least `distance` (RGB, Euclidean) from each of `others`, or the farthest of 30 draws."""
    draws = [_random_colour(rng) for _ in range(30)]
    gaps = [min(float(np.linalg.norm(draw - other)) for other in others) for draw in draws]
    for draw, gap in zip(draws, gaps, strict=True):
        if gap >= distance:
            return draw
    return draws[int(np.argmax(gaps))]


def _smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> Image:
    """Return smooth noise [H, W] in [0, 1] whose features are about `cell` pixels wide."""
    coarse = rng.random((int(height / cell) + 3, int(width / cell) + 3)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1).astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Image:
    """Return a grey texture [H, W] in [0, 1]: clouds, stripes, checks, waves or speckles."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    turn, period = rng.uniform(0, math.pi), rng.uniform(9.0, 34.0)
    along = x * math.cos(turn) + y * math.sin(turn)
    across = y * math.cos(turn) - x * math.sin(turn)
    clouds = 0.6 * _smooth_noise(rng, height, width, 40) + 0.4 * _smooth_noise(rng, height, width, 12)
    kind = int(rng.integers(5))
    if kind == 0:
        return clouds
    if kind == 1:
        pattern = 0.5 + 0.5 * np.sin(2 * math.pi * along / period)
    elif kind == 2:
        pattern = ((along // period + across // period) % 2).astype(np.float32)
    elif kind == 3:
        bend = 6.0 * np.sin(2 * math.pi * across / (3.0 * period))
        pattern = 0.5 + 0.5 * np.sin(2 * math.pi * (along + bend) / period)
    else:
        pattern = _smooth_noise(rng, height, width, 5)
    return np.asarray(0.55 * pattern + 0.45 * clouds, dtype=np.float32)


def _background(rng: np.random.Generator, height: int, width: int) -> Image:
    first = _random_colour(rng, (0.05, 0.6))
    contrast = rng.uniform(0.15, 0.55)
    second = np.clip(first + contrast * rng.uniform(-1, 1, 3), 0, 1).astype(np.float32)
    weight = _texture(rng, height, width)[..., None]
    image = first * (1 - weight) + second * weight
    light = 1.0 + 0.18 * (_smooth_noise(rng, height, width, 150)[..., None] - 0.5)
    return np.asarray(np.clip(image * light, 0, 1), dtype=np.float32)


def _paint(rng: np.random.Generator, image: Image, placement: _Placement, base: Image) -> None:
    """Blend one figure into the image: shadow, body with shading and outline, mark."""
    x, y, width, height = cv2.boundingRect((placement.alpha > 0).astype(np.uint8))
    x0, y0 = max(x - 12, 0), max(y - 12, 0)
    window = image[y0 : y + height + 12, x0 : x + width + 12]
    alpha = placement.alpha[y0 : y + height + 12, x0 : x + width + 12]
    affine = placement.affine - np.array([[0.0, 0.0, x0], [0.0, 0.0, y0]])
    height, width = alpha.shape
    shift = np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 3.0]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, shift, (width, height)), (0, 0), 3.0)
    window *= 1.0 - 0.30 * shadow[..., None]
    colour = _colour_away_from(rng, [base], 0.45)
    pixels = np.broadcast_to(colour, window.shape).copy()
    if rng.random() < 0.6:
        pixels *= 1.0 + rng.uniform(0.15, 0.4) * (_texture(rng, height, width)[..., None] - 0.5)
    pixels *= 1.0 + 0.35 * (_smooth_noise(rng, height, width, 60)[..., None] - 0.5)
    for shape, tone in placement.figure.shades:
        _blend(pixels, _coverage((shape,), affine, height, width), _toned(colour, tone), 0.8)
    inner = cv2.erode(alpha, np.ones((3, 3), np.uint8))
    pixels *= 1.0 - 0.45 * (alpha - inner)[..., None]
    if placement.figure.mark and rng.random() >= MARK_MISSING:
        own = _colour_away_from(rng, [colour], 0.6)
        for shape, tone in placement.figure.mark:
            _blend(pixels, _coverage((shape,), affine, height, width), _toned(own, tone), 1.0)
    window *= 1.0 - alpha[..., None]
    window += alpha[..., None] * np.clip(pixels, 0, 1)


def _blend(pixels: Image, cover: Image, colour: Image, strength: float) -> None:
    weight = strength * cover[..., None]
    pixels *= 1.0 - weight
    pixels += weight * colour


def _toned(colour: Image, tone: float) -> Image:
    """Move a colour towards black (tone < 0) or white (tone > 0)."""
    target = np.float32(1.0 if tone > 0 else 0.0)
    return (colour + abs(tone) * (target - colour)).astype(np.float32)
