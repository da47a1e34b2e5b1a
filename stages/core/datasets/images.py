"""The one image loader: any ordinary file becomes RGB uint8, upright, or an :class:`ImageError`.

Images of the real world are PNGs named ``.jpg``, CMYK scans, 16-bit grayscale and sideways phone photos.
What a file is, its bytes say, not its name. EXIF orientation is applied here, once, and nowhere else;
every coordinate in the project refers to the upright image.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.core.errors import ImageError

MAX_PIXELS = 89_478_485
"""Largest width x height accepted (Pillow's own warning limit: 256 MiB as RGB)."""

# Only raster formats that Pillow decodes itself: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# What Pillow's decoders are known to raise on damaged files, beside OSError.
_DECODER_ERRORS = (
    SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
    NotImplementedError, RuntimeError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
_ORIENTATION = 0x0112


def load_image(path: Path) -> NDArray[np.uint8]:
    """Read an image as RGB.

    Grayscale and palettes are expanded, CMYK is converted, 16-bit values are scaled to 8 bits, transparent
    pixels are laid over white, the first frame of an animation is taken, and EXIF orientation is applied.

    Returns:
        uint8 (H, W, 3), H and W of the upright image.

    Raises:
        ImageError: missing, empty, truncated, damaged or not an image, or more than ``MAX_PIXELS``.
    """
    with _opened(path) as image:
        image.load()
        pixels = np.ascontiguousarray(_as_rgb(_upright(image)), dtype=np.uint8)
    return pixels


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of the upright image, from its header.

    Raises:
        ImageError: missing, empty, not an image, or more than ``MAX_PIXELS``. Damage after the header
            is not noticed.
    """
    with _opened(path) as image:
        width, height = image.size
        # Pillow's TIFF reader reports the upright size by itself.
        sideways = image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8)
    return (width, height) if sideways else (height, width)


@functools.cache
def _formats() -> tuple[str, ...]:
    """The accepted formats this Pillow was built with; naming another makes it fail on every file."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open an image, check its size, and turn whatever decoding raises into :class:`ImageError`."""
    try:
        if path.stat().st_size == 0:
            raise ImageError("the file is empty (zero bytes)", where=path)
        with Image.open(path, formats=_formats()) as image:
            _check_size(image.size, path)
            yield image
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError("the image file does not exist", where=path) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "not an image of a known format", where=path, hint=f"convert it to one of {', '.join(FORMATS)}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"absurd size: {error}", where=path, hint=_SHRINK) from error
    except OSError as error:
        # Pillow has no class for truncation, only a message; errors of the file system carry strerror.
        raise ImageError(f"cannot be read ({error.strerror or error})", where=path) from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"damaged ({type(error).__name__}: {error})", where=path) from error


_SHRINK = "scale the image down, or leave it out of the split"


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageError(
            f"absurd size: {width} x {height} pixels, at most {MAX_PIXELS} in all", where=path, hint=_SHRINK
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 when the tag is absent, out of range or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except (OSError, *_DECODER_ERRORS):
        # A broken EXIF block says nothing about the pixels, which are what counts.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright(image: Image.Image) -> Image.Image:
    """Apply EXIF orientation to a loaded image (Pillow's TIFF reader has done so and dropped the tag)."""
    if _orientation(image) == 1:
        return image
    upright = ImageOps.exif_transpose(image)
    assert upright is not None
    return upright


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a loaded image of any mode to RGB uint8 (H, W, 3)."""
    if image.mode.startswith(("I", "F")):
        gray = _eight_bits(np.asarray(image), image.mode)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(canvas, layer)
    return np.asarray(image.convert("RGB"))


def _eight_bits(values_HW: NDArray[np.generic], mode: str) -> NDArray[np.uint8]:
    """Scale one channel of wide integers or floats to 0..255 by the range its type implies.

    Integers are 16-bit (also when Pillow holds them as 32-bit), floats are 0..1 or 0..255.

    Raises:
        ValueError: values outside these ranges, or not finite.
    """
    values = values_HW.astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("pixel values are negative or not finite")
    top = values.max()
    limits = (1.0, 255.0) if mode.startswith("F") else (65535.0,)
    for limit in limits:
        if top <= limit:
            return np.rint(values * (255.0 / limit)).astype(np.uint8)
    raise ValueError(f"pixel values up to {top:g} fit no 8-bit, 16-bit or 0..1 scale")
