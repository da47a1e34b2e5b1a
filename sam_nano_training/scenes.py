"""Drawn, class-agnostic scenes with the masks of every object, part and pile, to train sam-nano on.

A scene is layered paint: background, then objects from back to front, each one body with optional parts.
What a mask covers is what stays visible. None of it knows the `shapes` data set or any photograph.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from sam_nano_training.outlines import Mask, Points, fill, place, random_outline
from sam_nano_training.textures import (
    Image,
    crop_noise,
    paint,
    photograph,
    random_color,
    relief,
    vary_color,
)

SCENE_SIZE: Final = 256
MIN_VISIBLE_AREA: Final = 36
MIN_VISIBLE_SHARE: Final = 0.15


class Level(IntEnum):
    """Place of a mask in the hierarchy pile > object > part."""

    GROUP = 0
    OBJECT = 1
    PART = 2


@dataclass(frozen=True)
class Scene:
    """One drawn picture.

    Attributes:
        image: (S, S, 3) uint8 RGB; zero right of and below `valid_hw`.
        masks: (N, S, S) uint8 visible coverage, 0..255.
        levels: (N,) values of `Level`.
        parents: (N,) index of the mask one level up, or -1.
        valid_hw: height and width of the picture before padding to the square.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.uint8]
    levels: NDArray[np.int64]
    parents: NDArray[np.int64]
    valid_hw: tuple[int, int]


@dataclass
class Layer:
    """A recorded mask while later paint may still cover it."""

    visible: Mask
    level: Level
    parent: int
    full_area: float


@dataclass(frozen=True)
class Style:
    """Look shared by the objects of one kind within a scene."""

    contours: list[Points]
    united: bool
    color: Image
    aspect: float
    busy: float
    parts: int
    shaded: bool


@dataclass(frozen=True)
class Placement:
    """One object to be drawn: its style, centre and radius in pixels, and its pile or -1."""

    style: Style
    centre_xy: Points
    radius: float
    pile: int = -1


class ScenePainter:
    """Paints one scene; every random choice comes from `rng`."""

    def __init__(self, rng: np.random.Generator, bank: list[Image], size: int = SCENE_SIZE) -> None:
        self.rng = rng
        self.bank = bank
        self.size = size
        self.layers: list[Layer] = []
        angle = rng.uniform(0, 2 * np.pi)
        self.light_xy = (float(np.cos(angle)), float(np.sin(angle)))
        self.labeled = random_color(rng)
        self.soft_edges = float(rng.uniform(0.4, 1.3)) if rng.random() < 0.25 else 0.0
        self.shadow = float(rng.uniform(0.15, 0.6)) if rng.random() < 0.5 else 0.0
        self.image = self._background()

    def _background(self) -> Image:
        rng, size = self.rng, self.size
        if rng.random() < 0.2:
            self.labeled = np.full(3, rng.uniform(0.85, 1.0), dtype=np.float32)
            return paint(rng, self.bank, self.labeled, size, size, 0.0)
        busy = float(rng.uniform(0, 1))
        image = paint(rng, self.bank, self.labeled, size, size, busy)
        for _ in range(int(rng.choice(4, p=[0.5, 0.25, 0.15, 0.1]))):
            other = vary_color(rng, self.labeled, 0.2) if rng.random() < 0.5 else random_color(rng)
            region = crop_noise(rng, self.bank, size, size)
            if rng.random() < 0.5:
                angle = rng.uniform(0, 2 * np.pi)
                axis = np.arange(size, dtype=np.float32) / size - rng.uniform(0.2, 0.8)
                plane = axis[:, None] * np.sin(angle) + axis[None, :] * np.cos(angle)
                region = (plane * 60 + region * rng.uniform(0, 3)).astype(np.float32)
            weight = np.clip(region * float(rng.uniform(1, 8)) + 0.5, 0, 1)[..., None]
            image += weight * (paint(rng, self.bank, other, size, size, busy) - image)
        if rng.random() < 0.2:
            image = self._strokes(image)
        if rng.random() < 0.3:
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(1, 5))), dtype=np.float32)
        return image

    def _strokes(self, image: Image) -> Image:
        """Scatters thin lines over the background: grass, scratches, print. They are no objects."""
        rng = self.rng
        cover = np.zeros((self.size, self.size), dtype=np.uint8)
        length = float(rng.uniform(5, 60))
        for _ in range(int(rng.integers(10, 80))):
            start = rng.uniform(0, self.size, 2)
            end = start + rng.normal(0, length, 2)
            cv2.line(
                cover,
                start.astype(int).tolist(),
                end.astype(int).tolist(),
                (255.0,),
                int(rng.integers(1, 3)),
                cv2.LINE_AA,
            )
        weight = cover[..., None].astype(np.float32) * np.float32(rng.uniform(0.2, 1) / 255)
        return np.asarray(image + weight * (random_color(rng) - image), dtype=np.float32)

    def _occlude(self, cover: Mask, box: tuple[slice, slice], layers: list[Layer]) -> None:
        inverse = 255 - cover[box]
        for layer in layers:
            layer.visible[box] = cv2.multiply(layer.visible[box], inverse, scale=1 / 255)

    def _composite(self, cover: Mask, surface: Image, box: tuple[slice, slice]) -> None:
        weight = cover[box][..., None].astype(np.float32) * np.float32(1 / 255)
        self.image[box] += weight * (surface - self.image[box])

    def _surface(
        self, cover: Mask, box: tuple[slice, slice], color: Image, busy: float, shaded: bool
    ) -> Image:
        height, width = box[0].stop - box[0].start, box[1].stop - box[1].start
        surface = paint(self.rng, self.bank, color, height, width, busy)
        if shaded:
            shade, gloss = relief(self.rng, cover[box], self.light_xy)
            surface = surface * shade[..., None] + gloss[..., None]
        return surface

    def _part_cover(self, body: Mask, placement: Placement, box: tuple[slice, slice]) -> tuple[Mask, bool]:
        """Draws a part: a patch on the body, a slice of it, or (True) something that sticks out of it."""
        rng = self.rng
        kind = rng.choice(3, p=[0.45, 0.2, 0.35])
        rows, columns = np.nonzero(body > 127)
        pick = int(rng.integers(len(rows)))
        anchor = np.array([columns[pick] + 0.5, rows[pick] + 0.5])
        if kind == 1:
            angle = rng.uniform(0, 2 * np.pi)
            direction = np.array([np.cos(angle), np.sin(angle)])
            side = np.array([-direction[1], direction[0]])
            deep = placement.radius * (2.5 if rng.random() < 0.6 else rng.uniform(0.2, 0.6))
            corners = [anchor + side * 400, anchor + side * 400 + direction * deep]
            corners += [anchor - side * 400 + direction * deep, anchor - side * 400]
            slab = fill([np.array(corners)], self.size, False)
            return np.minimum(slab, body), False
        radius = placement.radius * float(np.exp(rng.uniform(np.log(0.15), np.log(0.55))))
        if kind == 2:
            outward = anchor - placement.centre_xy
            reach = np.linalg.norm(outward) + 1e-6
            anchor = placement.centre_xy + outward / reach * max(
                reach, placement.radius * rng.uniform(0.7, 1.0)
            )
        contours, united = random_outline(rng)
        contours = place(contours, anchor, radius, rng.uniform(0.35, 1), rng.uniform(0, 2 * np.pi))
        patch = fill(contours, self.size, united)
        return (np.minimum(patch, body), False) if kind == 0 else (patch, True)

    def draw(self, placement: Placement) -> None:
        """Paints one object with its shadow and parts, and records its masks."""
        rng, style = self.rng, placement.style
        angle = rng.uniform(0, 2 * np.pi)
        aspect = style.aspect * float(np.exp(rng.normal(0, 0.06)))
        contours = place(style.contours, placement.centre_xy, placement.radius, aspect, angle)
        body = fill(contours, self.size, style.united)
        if not (body > 127).any():
            return
        parts: list[Mask] = []
        whole = body
        for _ in range(style.parts):
            part, protrudes = self._part_cover(body, placement, self._box(body))
            if (part > 127).sum() >= MIN_VISIBLE_AREA:
                parts.append(part)
                whole = np.maximum(whole, part) if protrudes else whole
        if self.soft_edges:
            whole = np.asarray(cv2.GaussianBlur(whole, (0, 0), self.soft_edges), dtype=np.uint8)
        if self.shadow:
            self._cast_shadow(whole, placement.radius)
        box = self._box(whole)
        self._occlude(whole, box, [layer for layer in self.layers if layer.level is not Level.GROUP])
        color = vary_color(rng, style.color, 0.03)
        self._composite(whole, self._surface(whole, box, color, style.busy, style.shaded), box)
        own = len(self.layers)
        self.layers.append(Layer(whole.copy(), Level.OBJECT, placement.pile, float(whole.sum()) / 255))
        self._paint_parts(parts, whole, color, style, own)
        self._join_pile(whole, box, placement.pile)

    def _paint_parts(self, parts: list[Mask], whole: Mask, color: Image, style: Style, own: int) -> None:
        rng = self.rng
        painted: list[Layer] = []
        body = Layer(whole.copy(), Level.PART, own, float(whole.sum()) / 255)
        for part in parts:
            cover = np.minimum(part, whole)
            box = self._box(cover)
            part_color = vary_color(rng, color, 0.15) if rng.random() < 0.4 else random_color(rng)
            shaded = style.shaded and rng.random() < 0.5
            self._composite(cover, self._surface(cover, box, part_color, style.busy, shaded), box)
            self._occlude(cover, box, [*painted, body])
            painted.append(Layer(cover.copy(), Level.PART, own, float(cover.sum()) / 255))
        # What the parts leave of the body is a part too, unless it is nearly everything.
        if painted and float(body.visible.sum()) / 255 < 0.9 * body.full_area:
            painted.append(body)
        self.layers.extend(painted)

    def _join_pile(self, whole: Mask, box: tuple[slice, slice], pile: int) -> None:
        for index, layer in enumerate(self.layers):
            if layer.level is not Level.GROUP:
                continue
            if index == pile:
                layer.visible[box] = np.maximum(layer.visible[box], whole[box])
                layer.full_area = float(layer.visible.sum()) / 255
            else:
                self._occlude(whole, box, [layer])

    def _cast_shadow(self, cover: Mask, radius: float) -> None:
        distance = radius * float(self.rng.uniform(0.02, 0.3))
        shift = np.array([[1, 0, -self.light_xy[0] * distance], [0, 1, -self.light_xy[1] * distance]])
        moved = cv2.warpAffine(cover, shift, (self.size, self.size))
        moved = cv2.GaussianBlur(moved, (0, 0), max(radius * float(self.rng.uniform(0.03, 0.2)), 0.5))
        self.image *= 1 - moved[..., None].astype(np.float32) * np.float32(self.shadow / 255)

    @staticmethod
    def _box(cover: Mask) -> tuple[slice, slice]:
        left, top, width, height = cv2.boundingRect(cover)
        return slice(top, top + height), slice(left, left + width)


def _random_style(painter: ScenePainter) -> Style:
    rng = painter.rng
    contours, united = random_outline(rng)
    camouflaged = rng.random() < 0.12
    color = vary_color(rng, painter.labeled, 0.08) if camouflaged else random_color(rng)
    return Style(
        contours=contours,
        united=united,
        color=color,
        aspect=float(np.exp(rng.uniform(np.log(0.4), 0))) if rng.random() < 0.6 else 1.0,
        busy=float(rng.uniform(0, 1) ** 2),
        parts=int(rng.choice(5, p=[0.5, 0.25, 0.13, 0.08, 0.04])),
        shaded=bool(rng.random() < 0.65),
    )


def _scatter(painter: ScenePainter, count: int, low: float, high: float) -> list[Placement]:
    rng = painter.rng
    styles = [_random_style(painter) for _ in range(max(1, count // 2 if rng.random() < 0.5 else count))]
    placements: list[Placement] = []
    for index in range(count):
        radius = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        margin = min(radius * rng.uniform(-0.2, 1.0), painter.size * 0.45)
        # Prefer the emptiest of a few random spots, so that most objects stay mostly visible.
        spots = rng.uniform(margin, painter.size - margin, (6, 2))
        if placements and rng.random() < 0.85:
            centres = np.array([other.centre_xy for other in placements])
            radii = np.array([other.radius for other in placements])
            gaps = np.linalg.norm(spots[:, None] - centres[None], axis=2) - radii
            spots = spots[np.argmax(gaps.min(axis=1))][None]
        placements.append(Placement(styles[index % len(styles)], spots[0], radius))
    return placements


def _pile(painter: ScenePainter, pile: int) -> list[Placement]:
    """Touching objects of one kind: fruit in a bowl, stones, coins."""
    rng = painter.rng
    style = _random_style(painter)
    count = int(rng.integers(2, 13))
    radius = float(rng.uniform(12, 75 / np.sqrt(count) + 14))
    spread = radius * np.sqrt(count) * rng.uniform(0.6, 1.15)
    centre = rng.uniform(60, painter.size - 60, 2)
    spots: list[Points] = []
    for _ in range(count):
        tries = centre + rng.normal(0, spread * 0.7, (8, 2))
        if spots:
            nearest = np.linalg.norm(tries[:, None] - np.array(spots)[None], axis=2).min(axis=1)
            wanted = radius * rng.uniform(1.2, 2.0)
            spots.append(tries[np.argmin(np.abs(nearest - wanted))])
        else:
            spots.append(tries[0])
    return [Placement(style, spot, radius * float(np.exp(rng.normal(0, 0.1))), pile) for spot in spots]


def _plan(painter: ScenePainter) -> list[Placement]:
    rng = painter.rng
    kind = rng.choice(4, p=[0.45, 0.25, 0.15, 0.15])
    if kind == 0:
        return _scatter(painter, int(rng.integers(2, 11)), 7, 60)
    if kind == 1:
        placements = _scatter(painter, int(rng.integers(0, 4)), 8, 60)
        empty = np.zeros((painter.size, painter.size), dtype=np.uint8)
        painter.layers.append(Layer(empty, Level.GROUP, -1, 0.0))
        return placements + _pile(painter, 0)
    if kind == 2:
        return _scatter(painter, int(rng.integers(1, 3)), 55, 115) + _scatter(
            painter, int(rng.integers(0, 4)), 7, 30
        )
    return _scatter(painter, int(rng.integers(8, 18)), 6, 24)


def select_layers(
    layers: list[Layer], valid_hw: tuple[int, int], size: int
) -> tuple[Mask, NDArray[np.int64], NDArray[np.int64]]:
    """Keeps masks that are visible enough, crops them to the picture and renumbers their parents."""
    for layer in layers:
        layer.visible[valid_hw[0] :] = 0
        layer.visible[:, valid_hw[1] :] = 0
    kept: dict[int, int] = {-1: -1}
    for index, layer in enumerate(layers):
        area = float((layer.visible > 127).sum())
        if area >= max(MIN_VISIBLE_AREA, MIN_VISIBLE_SHARE * layer.full_area):
            kept[index] = len(kept) - 1
    indices = [index for index in kept if index >= 0]
    masks = np.zeros((len(indices), size, size), dtype=np.uint8)
    for row, index in enumerate(indices):
        masks[row] = layers[index].visible
    levels = np.array([int(layers[index].level) for index in indices], dtype=np.int64)
    parents = np.array([kept.get(layers[index].parent, -1) for index in indices], dtype=np.int64)
    return masks, levels, parents


def paint_scene(rng: np.random.Generator, bank: list[Image], size: int) -> tuple[Image, list[Layer]]:
    """Paints a square picture in 0..1 and returns it with the recorded masks, nothing selected yet."""
    painter = ScenePainter(rng, bank, size)
    for placement in _plan(painter):
        painter.draw(placement)
    return painter.image, painter.layers


def draw_scene(rng: np.random.Generator, bank: list[Image], size: int = SCENE_SIZE) -> Scene:
    """Draws a scene with at least one mask.

    Args:
        rng: the only source of chance.
        bank: noise fields of `make_noise_bank`.
        size: side of the square picture in pixels.

    Returns:
        the scene; about a third are not square and padded with zeros like `Sam.preprocess` does.
    """
    while True:
        painted, layers = paint_scene(rng, bank, size)
        valid = (size, size)
        if rng.random() < 0.35:
            short = int(size * rng.uniform(0.55, 1.0))
            valid = (short, size) if rng.random() < 0.7 else (size, short)
        masks, levels, parents = select_layers(layers, valid, size)
        if len(masks):
            break
    image = np.zeros((size, size, 3), dtype=np.uint8)
    image[: valid[0], : valid[1]] = photograph(rng, painted[: valid[0], : valid[1]])
    return Scene(image, masks, levels, parents, valid)


def enlarge(scene: Scene, size: int) -> Scene:
    """Interpolates a scene to another side in pixels."""
    scale = size / scene.image.shape[0]
    image = np.zeros((size, size, 3), dtype=np.uint8)
    rows, columns = (min(round(extent * scale), size) for extent in scene.valid_hw)
    visible = scene.image[: scene.valid_hw[0], : scene.valid_hw[1]]
    image[:rows, :columns] = cv2.resize(visible, (columns, rows), interpolation=cv2.INTER_LINEAR)
    masks = np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_LINEAR) for mask in scene.masks])
    return Scene(image, masks.astype(np.uint8), scene.levels, scene.parents, (rows, columns))
