"""Colours that stay apart: for many classes, for the four proposal sources, in common colour blindness.

The first seven class colours are those of Okabe and Ito (2008) without black, the next ones fill the
gaps between them in lightness; further classes walk around the hue circle by the golden angle while
lightness alternates, so that neighbours in the list never look alike.
"""

from __future__ import annotations

import colorsys

Color = tuple[int, int, int]
"""Red, green, blue in 0..255."""

_FIRST: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (240, 228, 66),  # yellow
    (204, 121, 167),  # reddish purple
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
    (170, 255, 195),  # mint
    (128, 60, 160),  # violet
    (255, 190, 190),  # pink
    (120, 90, 40),  # brown
    (0, 220, 220),  # cyan
)
_GOLDEN_TURN = 0.381966011250105
_LIGHTNESS = (0.42, 0.72, 0.56)

SOURCE_COLORS: dict[str, Color] = {
    "grid": (86, 180, 233),
    "coarse": (230, 159, 0),
    "fine": (0, 158, 115),
    "cross": (204, 121, 167),
}
"""Colour of each way in which a proposal or a prompt came about, by the names of ``SOURCE_BITS``."""

TRUTH_COLOR: Color = (255, 255, 255)


def class_color(index: int) -> Color:
    """Colour of a class, the same in every picture.

    Args:
        index: 0-based class index.
    """
    assert index >= 0, index
    if index < len(_FIRST):
        return _FIRST[index]
    step = index - len(_FIRST)
    red, green, blue = colorsys.hls_to_rgb(
        (0.05 + step * _GOLDEN_TURN) % 1.0, _LIGHTNESS[step % len(_LIGHTNESS)], 0.75
    )
    return round(red * 255), round(green * 255), round(blue * 255)


def ink_on(background: Color) -> Color:
    """Black or white, whichever reads better on a colour (relative luminance of WCAG 2)."""
    linear = [
        channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
        for channel in (value / 255 for value in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # The luminance at which contrast with black equals contrast with white.
    return (16, 16, 16) if luminance > 0.179 else (255, 255, 255)
