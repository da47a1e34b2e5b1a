"""Pictures of what was found, as arrays that any notebook shows: ``PIL.Image.fromarray(picture)``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.schemas import MAP_KINDS
from stages.core.structures.detections import Detections
from stages.core.viz import drawing
from stages.core.viz.palette import SOURCE_COLORS
from stages.predict import viz
from weaksam.rows import Prompts


def draw_detections(
    pixels_HW3: NDArray[np.uint8], found: Detections, classes: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw masks, boxes, names and scores on an image, enlarged where labels would not be legible.

    Args:
        pixels_HW3: RGB uint8.
        found: What to draw; the first lies on top.
        classes: Names of the classes by index.

    Returns:
        RGB uint8, its longer side between 480 and 1280 pixels.
    """
    return viz.draw_detections(pixels_HW3, found, classes)


def draw_map(pixels_HW3: NDArray[np.uint8], map_hw: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a map over an image: gray where it is low, glowing where it is high.

    Args:
        pixels_HW3: RGB uint8.
        map_hw: Values in [0, 1] on a grid of any size that covers the image exactly.
    """
    return drawing.overlay_map(drawing.enlarged(pixels_HW3)[0], map_hw)


def draw_points(pixels_HW3: NDArray[np.uint8], prompts: Prompts) -> NDArray[np.uint8]:
    """Draw point prompts in the color of the kind of map that brought them."""
    picture, factor = drawing.enlarged(pixels_HW3)
    colors = [SOURCE_COLORS[MAP_KINDS[kind]] for kind in prompts.kinds.tolist()]
    return drawing.draw_points(picture, prompts.xy * factor, colors)
