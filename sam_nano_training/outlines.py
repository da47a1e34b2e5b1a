"""Random outlines for the scenes that train sam-nano: closed contours in the unit disc, drawn by seed.

Every function returns contours (V, 2) around the origin with a radius of about one; holes are separate
contours that are cut out by even-odd filling.
"""

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Mask = NDArray[np.uint8]
SUBPIXEL_BITS: Final = 4


def _polar(radius: Points, angles: Points) -> Points:
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def blob(rng: np.random.Generator) -> list[Points]:
    """Smooth closed curve: a circle with random low Fourier harmonics."""
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angles)
    strength = rng.uniform(0.02, 0.35)
    for harmonic in range(2, int(rng.integers(3, 8))):
        amplitude = strength / (harmonic - 1) * rng.uniform(0.3, 1)
        radius += amplitude * np.cos(harmonic * angles + rng.uniform(0, 2 * np.pi))
    return [_polar(np.maximum(radius, 0.15), angles)]


def polygon(rng: np.random.Generator) -> list[Points]:
    """Polygon of 3 to 9 corners, regular up to a random jitter."""
    count = int(rng.integers(3, 10))
    jitter = rng.uniform(0, 0.45)
    angles = (np.arange(count) + rng.uniform(-jitter, jitter, count)) * 2 * np.pi / count
    return [_polar(rng.uniform(1 - jitter, 1, count), angles)]


def superellipse(rng: np.random.Generator) -> list[Points]:
    """Superellipse: from a pinched diamond over the ellipse to a rounded rectangle."""
    exponent = 2 / rng.choice([rng.uniform(1.2, 2), 2.0, rng.uniform(2, 8)])
    angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    cosine, sine = np.cos(angles), np.sin(angles)
    return [
        np.stack(
            [np.sign(cosine) * np.abs(cosine) ** exponent, np.sign(sine) * np.abs(sine) ** exponent], axis=1
        )
    ]


def star(rng: np.random.Generator) -> list[Points]:
    """Star, flower or gear with 3 to 10 arms."""
    arms = int(rng.integers(3, 11))
    inner = rng.uniform(0.3, 0.85)
    if rng.random() < 0.5:
        angles = np.arange(2 * arms) * np.pi / arms
        return [_polar(np.where(np.arange(2 * arms) % 2 == 0, 1.0, inner), angles)]
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    wave = np.tanh(rng.uniform(0.5, 5) * np.cos(arms * angles))
    return [_polar((1 + inner) / 2 + (1 - inner) / 2 * wave, angles)]


def _thicken(spine: Points, half_width: Points) -> Points:
    tangent = np.gradient(spine, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    return np.concatenate(
        [spine + normal * half_width[:, None], (spine - normal * half_width[:, None])[::-1]]
    )


def bow(rng: np.random.Generator) -> list[Points]:
    """Curved tapering body along an arc: a banana, a horn, a bent stick."""
    bend = rng.uniform(0.1, 2.6)
    along = np.linspace(-0.5, 0.5, 24)
    spine = np.stack([np.sin(bend * along), np.cos(bend * along)], axis=1) / bend
    spine -= spine.mean(axis=0)
    spine /= np.abs(spine).max()
    taper = np.sqrt(np.maximum(1 - np.abs(2 * along) ** rng.uniform(1.5, 12), 0.0))
    return [_thicken(spine, rng.uniform(0.08, 0.4) * np.maximum(taper, rng.uniform(0, 0.4)))]


def squiggle(rng: np.random.Generator) -> list[Points]:
    """Thin winding band."""
    along = np.linspace(-1, 1, 40)
    offset = sum(
        rng.normal(0, 0.35 / k) * np.sin(k * np.pi * along + rng.uniform(0, 2 * np.pi)) for k in range(1, 4)
    )
    spine = np.stack([along, np.asarray(offset)], axis=1)
    return [_thicken(spine, np.full(40, rng.uniform(0.04, 0.14)))]


def ring(rng: np.random.Generator) -> list[Points]:
    """Outline with one hole of another or the same outline."""
    outer = (blob, polygon, superellipse)[int(rng.integers(3))](rng)[0]
    inner = outer if rng.random() < 0.5 else blob(rng)[0]
    return [outer, inner * rng.uniform(0.3, 0.65) + rng.uniform(-0.1, 0.1, 2)]


def bars(rng: np.random.Generator) -> list[Points]:
    """Letter-like union of bars: cross, T, L, H, arrow."""
    width = rng.uniform(0.15, 0.4)
    contours = [np.array([[-1, -width], [1, -width], [1, width], [-1, width]], dtype=np.float64)]
    for _ in range(int(rng.integers(1, 3))):
        position, shift = rng.uniform(-1, 1) * (1 - width), rng.uniform(-0.8, 0.8)
        thin = width * rng.uniform(0.6, 1.2)
        contours.append(
            np.array(
                [
                    [position - thin, shift - 0.8],
                    [position + thin, shift - 0.8],
                    [position + thin, shift + 0.8],
                    [position - thin, shift + 0.8],
                ]
            )
        )
    return contours


# Weighted by how often such outlines bound everyday things.
OUTLINES: Final[tuple[tuple[Callable[[np.random.Generator], list[Points]], float, bool], ...]] = (
    # (drawer, weight, contours are united rather than cut out of each other)
    (blob, 0.27, False),
    (superellipse, 0.22, False),
    (polygon, 0.16, False),
    (bow, 0.12, False),
    (star, 0.10, False),
    (bars, 0.05, True),
    (ring, 0.05, False),
    (squiggle, 0.03, False),
)
_WEIGHTS: Final = np.array([weight for _, weight, _ in OUTLINES]) / sum(weight for _, weight, _ in OUTLINES)


def random_outline(rng: np.random.Generator) -> tuple[list[Points], bool]:
    """Draws contours of a random kind, and whether they are united (True) or filled even-odd (False)."""
    drawer, _, united = OUTLINES[int(rng.choice(len(OUTLINES), p=_WEIGHTS))]
    return drawer(rng), united


def place(
    contours: list[Points], centre_xy: Points, radius: float, aspect: float, angle: float
) -> list[Points]:
    """Scales to `radius` pixels, squeezes y by `aspect`, turns by `angle` radians and moves to the centre."""
    cosine, sine = np.cos(angle), np.sin(angle)
    turn = np.array([[cosine, -sine], [sine, cosine]])
    return [(points * (radius, radius * aspect)) @ turn.T + centre_xy for points in contours]


def fill(contours: list[Points], size: int, united: bool) -> Mask:
    """Rasterises contours with antialiased edges.

    Args:
        contours: polygons in pixels.
        size: side of the square canvas.
        united: paint each contour in full, instead of even-odd.

    Returns:
        coverage (size, size) in 0..255.
    """
    canvas = np.zeros((size, size), dtype=np.uint8)
    # Pixel centres are integers for OpenCV, and half-integers for us.
    # Its antialiased rim is up to a pixel too wide; pictures and masks share it, so they still agree.
    fixed = [np.round((points - 0.5) * 2**SUBPIXEL_BITS).astype(np.int32) for points in contours]
    if united:
        for points in fixed:
            cv2.fillPoly(canvas, [points], (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
    else:
        cv2.fillPoly(canvas, fixed, (255.0,), cv2.LINE_AA, SUBPIXEL_BITS)
    return canvas
