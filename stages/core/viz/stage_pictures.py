"""One PNG per image of a split: the loop that the pictures of every stage have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.viz.drawing import Picture, enlarged, save_png


def draw_each(
    split: WeakSplit,
    ids: Iterable[str],
    folder: Path,
    render: Callable[[str, Picture, float], Picture],
    side: int = 480,
) -> list[Path]:
    """Draw some images of a split.

    Args:
        split: Where the images are.
        ids: Which images.
        folder: Where the pictures are written, as `<image id>.png`.
        render: Image id, the image (H, W, 3) scaled to `side`, and the factor of its coordinates -> the picture.
        side: Long side of the scaled image, pixels.

    Returns:
        The files, in the order of `ids`.
    """
    paths = []
    for image_id in ids:
        picture, factor = enlarged(load_image(split.image_path(image_id)), side)
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], render(image_id, picture, factor))
    return paths
