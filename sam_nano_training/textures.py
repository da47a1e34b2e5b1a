"""Surface textures, relief shading and camera faults for the scenes that train sam-nano.

Everything works on float32 images in 0..1. Power-law noise comes from a bank of precomputed fields, because
drawing it afresh would cost more than the rest of the scene.
"""

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
FIELD_SIZE: Final = 512


def make_noise_bank(seed: int, count: int = 12) -> list[Image]:
    """Draws `count` periodic noise fields with power spectra from f^-1 to f^-3.5, zero mean, unit deviation."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(FIELD_SIZE)[:, None], np.fft.rfftfreq(FIELD_SIZE)[None, :])
    frequency[0, 0] = 1.0
    bank = []
    for index in range(count):
        exponent = 0.5 + 1.25 * index / max(count - 1, 1)
        spectrum = np.fft.rfft2(rng.normal(size=(FIELD_SIZE, FIELD_SIZE))) / frequency**exponent
        spectrum[0, 0] = 0
        field = np.fft.irfft2(spectrum, s=(FIELD_SIZE, FIELD_SIZE))
        bank.append(np.asarray(field / field.std(), dtype=np.float32))
    return bank


def crop_noise(rng: np.random.Generator, bank: list[Image], height: int, width: int) -> Image:
    """Cuts a random window of a random field, at a random zoom."""
    field = bank[int(rng.integers(len(bank)))]
    zoom = float(np.exp(rng.uniform(np.log(0.4), np.log(2.0))))
    rows = min(max(int(height * zoom), 2), FIELD_SIZE)
    columns = min(max(int(width * zoom), 2), FIELD_SIZE)
    top, left = int(rng.integers(FIELD_SIZE - rows + 1)), int(rng.integers(FIELD_SIZE - columns + 1))
    window = field[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    return np.asarray(cv2.resize(window, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def random_color(rng: np.random.Generator) -> Image:
    """Draws an RGB colour, from grey to saturated."""
    hue, value = rng.uniform(0, 6), rng.uniform(0.08, 1.0)
    saturation = rng.choice([rng.uniform(0, 0.2), rng.uniform(0.2, 1.0)], p=[0.3, 0.7])
    pure = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return np.asarray(value * (1 - saturation + saturation * pure), dtype=np.float32)


def vary_color(rng: np.random.Generator, color: Image, amount: float) -> Image:
    """Moves a colour by a normal step of deviation `amount` per channel, clipped to 0..1."""
    common = rng.normal(0, amount)
    return np.clip(color + common + rng.normal(0, amount * 0.5, 3), 0.02, 1).astype(np.float32)


def _coordinate(rng: np.random.Generator, height: int, width: int) -> Image:
    """Signed distance in pixels along a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    return rows + np.arange(width, dtype=np.float32)[None, :] * np.float32(np.cos(angle))


def _unit(values: NDArray[Any]) -> Image:
    return np.asarray(np.clip(values, 0, 1), dtype=np.float32)


def _pattern(rng: np.random.Generator, bank: list[Image], height: int, width: int) -> Image:
    """A mixing weight in 0..1 per pixel: noise, stripes, checks, dots, a gradient or patches."""
    kind = rng.choice(6, p=[0.34, 0.14, 0.08, 0.10, 0.22, 0.12])
    period = float(np.exp(rng.uniform(np.log(4), np.log(48))))
    if kind == 0:
        return _unit(0.5 + 0.3 * crop_noise(rng, bank, height, width))
    if kind == 4:
        ramp = _coordinate(rng, height, width)
        return _unit((ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-3))
    if kind == 5:
        return np.asarray(crop_noise(rng, bank, height, width) > rng.uniform(-0.6, 0.6), dtype=np.float32)
    first = np.sin(_coordinate(rng, height, width) * np.float32(2 * np.pi / period))
    if kind == 1:
        wobble = rng.uniform(0, 1.5) * crop_noise(rng, bank, height, width)
        return _unit(0.5 + rng.uniform(0.5, 4) * (first + 0.3 * wobble))
    second = np.sin(_coordinate(rng, height, width) * np.float32(2 * np.pi / period))
    level = 0.0 if kind == 2 else rng.uniform(0.3, 0.8)
    return _unit(0.5 + 4 * (first * second - level))


def paint(
    rng: np.random.Generator, bank: list[Image], color: Image, height: int, width: int, busy: float
) -> Image:
    """Paints a surface (height, width, 3) around `color`; `busy` in 0..1 sets how contrasted its pattern is."""
    surface = np.empty((height, width, 3), dtype=np.float32)
    surface[:] = color
    if rng.random() < 0.25 + 0.6 * busy:
        amount = float(rng.uniform(0.03, 0.35)) * (0.4 + busy)
        other = random_color(rng) if rng.random() < 0.35 * busy else vary_color(rng, color, amount)
        surface += _pattern(rng, bank, height, width)[..., None] * (other - color)
    if rng.random() < 0.6:
        grain = crop_noise(rng, bank, height, width) * np.float32(rng.uniform(0.005, 0.06) * (0.5 + busy))
        surface += grain[..., None]
    return surface


def relief(
    rng: np.random.Generator, coverage: NDArray[np.uint8], light_xy: tuple[float, float]
) -> tuple[Image, Image]:
    """Shades a flat mask as if it were a cushion lit from one side.

    Args:
        rng: draws the height profile and the gloss.
        coverage: (h, w) mask of the object, 0..255.
        light_xy: direction to the light in the image plane, unit length.

    Returns:
        shade (h, w), the factor on the colour; gloss (h, w), added to it.
    """
    padded = cv2.copyMakeBorder(coverage, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    padded[0], padded[-1], padded[:, 0], padded[:, -1] = 0, 0, 0, 0
    depth = cv2.distanceTransform((padded > 127).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    deepest = max(float(depth.max()), 1.0)
    roundness = float(rng.uniform(0.25, 1.0))
    rim = np.clip(depth / (deepest * roundness), 0, 1)
    height = np.sqrt(1 - (1 - rim) ** 2) * deepest * roundness
    sigma = max(deepest * 0.12, 0.6)
    height = cv2.GaussianBlur(height.astype(np.float32), (0, 0), sigma)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    elevation = float(rng.uniform(0.5, 1.6))
    length = np.sqrt(slope_x**2 + slope_y**2 + 1)
    norm = float(np.hypot(1.0, elevation))
    lambert = (elevation - slope_x * light_xy[0] - slope_y * light_xy[1]) / (length * norm)
    ambient = float(rng.uniform(0.25, 0.8))
    shade = ambient + (1 - ambient) * np.clip(lambert, 0, 1) / max(elevation / norm, 0.4)
    gloss = np.zeros_like(shade)
    if rng.random() < 0.35:
        gloss = np.float32(rng.uniform(0.1, 0.7)) * np.clip(lambert, 0, 1) ** float(rng.uniform(12, 60))
    return shade.astype(np.float32), gloss.astype(np.float32)


def photograph(rng: np.random.Generator, image: Image) -> NDArray[np.uint8]:
    """Applies exposure, colour cast, blur, rescaling, sensor noise and JPEG; returns uint8 RGB of equal size."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        image = np.clip(image, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.25)))
        image = image * rng.normal(1, 0.06, 3).astype(np.float32) * np.float32(rng.uniform(0.75, 1.15))
    if rng.random() < 0.06:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.1))), dtype=np.float32)
    elif rng.random() < 0.25:
        scale = float(rng.uniform(0.45, 0.9))
        small = cv2.resize(image, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_AREA)
        image = np.asarray(
            cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32
        )
    pixels = image * 255
    if rng.random() < 0.5:
        pixels = pixels + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0.5, 9))
    result: NDArray[np.uint8] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(35, 95))
        _, encoded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])
        result = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return result
