"""The figures of the embedded `shapes` set, as polygons in a unit square.

Each class has a silhouette, some shading that carries no information, and one small *mark* (an eye, a star, a spiral
...) that no other class has. The mark is what a classifier finds first, so class activation maps and weakly
supervised detectors tend to stop at it: the failure that the method is about. Distractors have silhouettes of their
own and no mark. Coordinates: x to the right, y down, the figure fits in [-1, 1] x [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """One drawable thing.

    Attributes:
        body: polygons whose union is the silhouette.
        holes: polygons cut out of the body (the background shows through).
        shades: (polygon, tone) drawn on the body; tone < 0 darkens, > 0 lightens, in [-1, 1].
        mark: (polygon, tone) of the discriminative part; tone 0 is the mark's own colour.
    """

    body: tuple[Polygon, ...]
    holes: tuple[Polygon, ...] = ()
    shades: tuple[tuple[Polygon, float], ...] = ()
    mark: tuple[tuple[Polygon, float], ...] = ()


def polygon(*points: tuple[float, float]) -> Polygon:
    """Return the polygon through `points`."""
    return np.array(points, dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> Polygon:
    """Return an ellipse, or the pie-free segment of it between two angles in degrees (0 = right, 90 = down)."""
    angles = np.radians(np.linspace(start, stop, 40))
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def box(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Return an axis-parallel rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def star(x: float, y: float, outer: float, inner: float, points: int = 5) -> Polygon:
    """Return a star with one point up."""
    angles = -math.pi / 2 + np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2 == 0, outer, inner)
    return np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], axis=1)


def band(line: Sequence[tuple[float, float]] | Polygon, width: float) -> Polygon:
    """Return the strip of the given width along a polyline."""
    points = np.asarray(line, dtype=np.float64)
    tangent = np.gradient(points, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * width / 2
    return np.concatenate([points + normal, (points - normal)[::-1]])


def _heart(x: float, y: float, size: float) -> Polygon:
    t = np.linspace(0, 2 * math.pi, 40)
    xs = 16 * np.sin(t) ** 3
    ys = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x + size * xs / 16, y + size * ys / 16], axis=1)


def _spiral(x: float, y: float, radius: float, turns: float, width: float) -> Polygon:
    t = np.linspace(0.12, 1.0, 70)
    angles = 2 * math.pi * turns * t
    line = np.stack([x + radius * t * np.cos(angles), y + radius * t * np.sin(angles)], axis=1)
    return band(line, width)


def _wing(x: float, y: float, length: float, width: float, degrees: float) -> Polygon:
    petal = ellipse(length / 2, 0.0, length / 2, width / 2)
    turn = math.radians(degrees)
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    return np.asarray(petal @ rotation + np.array([x, y]), dtype=np.float64)


def _fish() -> Figure:
    tail = polygon((0.30, 0.0), (0.62, -0.18), (0.98, -0.52), (0.86, 0.0), (0.98, 0.52), (0.62, 0.18))
    fin = polygon((-0.25, -0.38), (0.05, -0.72), (0.35, -0.66), (0.25, -0.32))
    return Figure(
        body=(ellipse(-0.22, 0.0, 0.74, 0.50), tail, fin),
        shades=(
            (polygon((-0.05, 0.05), (0.28, 0.20), (0.00, 0.34)), -0.35),
            (band([(0.62, -0.12), (0.90, -0.34)], 0.05), -0.30),
            (band([(0.62, 0.12), (0.90, 0.34)], 0.05), -0.30),
        ),
        mark=(
            (ellipse(-0.62, -0.10, 0.17, 0.17), 0.9),
            (ellipse(-0.64, -0.10, 0.095, 0.095), -0.95),
            (ellipse(-0.67, -0.14, 0.035, 0.035), 0.95),
        ),
    )


def _mug() -> Figure:
    handle = ellipse(0.46, 0.06, 0.50, 0.50)
    return Figure(
        body=(polygon((-0.74, -0.80), (0.52, -0.80), (0.44, 0.84), (-0.66, 0.84)), handle),
        holes=(_intersect_right(ellipse(0.46, 0.06, 0.29, 0.29), 0.50),),
        shades=((box(-0.74, -0.80, 0.52, -0.64), 0.35), (band([(-0.56, -0.58), (-0.50, 0.76)], 0.10), 0.25)),
        mark=((_heart(-0.12, 0.10, 0.28), 0.0),),
    )


def _intersect_right(shape: Polygon, left: float) -> Polygon:
    """Clip a convex polygon to x >= left (the mug's hole must not cut into its body)."""
    return np.stack([np.maximum(shape[:, 0], left), shape[:, 1]], axis=1)


def _house() -> Figure:
    frame = (box(-0.30, 0.02, 0.18, 0.50), 0.0)
    panes = [(box(x, y, x + 0.17, y + 0.17), 0.9) for x in (-0.26, -0.03) for y in (0.06, 0.29)]
    return Figure(
        body=(
            box(-0.70, -0.22, 0.70, 0.90),
            polygon((-0.98, -0.16), (0.0, -0.95), (0.98, -0.16)),
            box(0.40, -0.92, 0.64, -0.30),
        ),
        shades=(
            (polygon((-0.98, -0.16), (0.0, -0.95), (0.98, -0.16)), -0.40),
            (box(0.34, 0.34, 0.58, 0.90), -0.3),
        ),
        mark=(frame, *panes),
    )


def _rocket() -> Figure:
    hull = np.concatenate([ellipse(0.0, -0.10, 0.36, 0.88, 180, 360), polygon((0.30, 0.62), (-0.30, 0.62))])
    left = polygon((-0.30, 0.10), (-0.78, 0.55), (-0.74, 0.92), (-0.26, 0.62))
    right = left * np.array([-1.0, 1.0])
    return Figure(
        body=(hull, left, right, polygon((-0.20, 0.60), (0.20, 0.60), (0.13, 0.80), (-0.13, 0.80))),
        shades=((left, -0.35), (right, -0.35), (ellipse(0.0, -0.10, 0.36, 0.88, 222, 318), 0.35)),
        mark=((star(0.0, 0.06, 0.28, 0.12), 0.0),),
    )


def _mushroom() -> Figure:
    cap = np.concatenate([ellipse(0.0, 0.02, 0.95, 0.88, 180, 360), ellipse(0.0, 0.02, 0.95, 0.16, 0, 180)])
    stem = polygon((-0.24, 0.0), (0.24, 0.0), (0.36, 0.92), (-0.36, 0.92))
    return Figure(
        body=(cap, stem),
        shades=((polygon((-0.24, 0.14), (0.24, 0.14), (0.36, 0.92), (-0.36, 0.92)), 0.45),),
        mark=(
            (ellipse(-0.20, -0.50, 0.13, 0.13), 0.0),
            (ellipse(0.16, -0.56, 0.13, 0.13), 0.0),
            (ellipse(0.00, -0.23, 0.13, 0.13), 0.0),
        ),
    )


def _butterfly() -> Figure:
    upper, lower = _wing(0.0, -0.02, 1.12, 0.80, 38), _wing(0.0, 0.0, 0.90, 0.58, -42)
    mirror = np.array([-1.0, 1.0])
    stripes = [
        (box(-0.11, y, 0.11, y + 0.10), -0.95 if i % 2 == 0 else 0.9)
        for i, y in enumerate((-0.40, -0.30, -0.20, -0.10, 0.0, 0.10, 0.20, 0.30))
    ]
    return Figure(
        body=(upper, upper * mirror, lower, lower * mirror, ellipse(0.0, 0.0, 0.13, 0.58)),
        shades=(
            (_wing(0.22, -0.18, 0.62, 0.42, 38), 0.35),
            (_wing(0.22, -0.18, 0.62, 0.42, 38) * mirror, 0.35),
            (_wing(0.2, 0.16, 0.45, 0.26, -42), -0.30),
            (_wing(0.2, 0.16, 0.45, 0.26, -42) * mirror, -0.30),
        ),
        mark=tuple(stripes),
    )


def _car() -> Figure:
    cabin = polygon((-0.62, -0.08), (-0.40, -0.52), (0.26, -0.52), (0.60, -0.08))
    wheels = (ellipse(-0.52, 0.38, 0.22, 0.22), ellipse(0.52, 0.38, 0.22, 0.22))
    squares = [
        (
            box(-0.26 + 0.13 * i, 0.0 + 0.13 * j, -0.13 + 0.13 * i, 0.13 + 0.13 * j),
            0.9 if (i + j) % 2 else -0.95,
        )
        for i in range(4)
        for j in range(2)
    ]
    return Figure(
        body=(
            cabin,
            polygon((-0.95, -0.06), (0.88, -0.12), (0.98, 0.10), (0.96, 0.38), (-0.97, 0.38)),
            *wheels,
        ),
        shades=(
            (polygon((-0.50, -0.10), (-0.35, -0.43), (-0.08, -0.43), (-0.08, -0.10)), 0.55),
            (polygon((0.0, -0.10), (0.0, -0.43), (0.22, -0.43), (0.46, -0.10)), 0.55),
            *((wheel, -0.75) for wheel in wheels),
            (ellipse(-0.52, 0.38, 0.09, 0.09), 0.3),
            (ellipse(0.52, 0.38, 0.09, 0.09), 0.3),
        ),
        mark=tuple(squares),
    )


def _snail() -> Figure:
    foot = polygon(
        (-0.95, 0.62), (-0.88, 0.10), (-0.70, -0.02), (-0.52, 0.12), (-0.50, 0.34), (0.6, 0.34), (0.98, 0.62)
    )
    horns = (band([(-0.80, 0.08), (-0.94, -0.34)], 0.08), band([(-0.64, 0.06), (-0.58, -0.36)], 0.08))
    return Figure(
        body=(ellipse(0.16, -0.06, 0.58, 0.58), foot, *horns),
        shades=((foot, 0.35),),
        mark=((_spiral(0.16, -0.08, 0.33, 2.2, 0.075), 0.0),),
    )


CLASS_FIGURES: dict[str, Figure] = {
    "butterfly": _butterfly(),
    "car": _car(),
    "fish": _fish(),
    "house": _house(),
    "mug": _mug(),
    "mushroom": _mushroom(),
    "rocket": _rocket(),
    "snail": _snail(),
}
"""The eight classes, in alphabetical order (the order of class indices)."""

DISTRACTORS: tuple[Figure, ...] = (
    Figure(body=(ellipse(0, 0, 0.9, 0.9),), holes=(ellipse(0, 0, 0.45, 0.45),)),
    Figure(body=(star(0, 0, 1.0, 0.45, 6),)),
    Figure(body=(box(-0.3, -0.95, 0.3, 0.95), box(-0.95, -0.3, 0.95, 0.3))),
    Figure(body=(polygon((0, -0.9), (0.9, 0.8), (-0.9, 0.8)),), shades=((box(-0.3, 0.2, 0.3, 0.4), -0.4),)),
    Figure(body=(ellipse(0, 0, 0.95, 0.55),), shades=((ellipse(0.1, 0.0, 0.5, 0.2), 0.4),)),
    Figure(body=(box(-0.85, -0.6, 0.85, 0.6),), shades=((box(-0.6, -0.35, 0.6, -0.15), -0.4),)),
    Figure(body=(star(0, 0, 0.95, 0.72, 3),)),
    Figure(body=(ellipse(0, 0, 0.9, 0.9),), holes=(ellipse(0.45, -0.15, 0.75, 0.75),)),
)
"""Silhouettes of no class, without a mark."""
