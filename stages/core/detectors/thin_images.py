"""Images so thin that resizing leaves nothing of a side: detectors can neither be trained on nor applied to them."""

from __future__ import annotations

from pathlib import Path

from stages.core.errors import ImageError


def check_not_thin(
    height: int, width: int, short_side: int, max_size: int, where: Path | None = None
) -> None:
    """Refuse an image of which a side would be scaled below one pixel.

    The rule is the one by which torchvision resizes for its detectors, in training as in evaluation: the short side
    to `short_side`, the long one to at most `max_size`, both rounded down.

    Args:
        height, width: of the image, pixels.
        short_side, max_size: what it is resized to, pixels.
        where: its file, for the message.

    Raises:
        ImageError: names the size.
    """
    short, long = min(height, width), max(height, width)
    if int(short * min(short_side / short, max_size / long)) < 1:
        raise ImageError(
            f"an image of {width} x {height} px is too thin: its short side vanishes when the long one becomes"
            f" {max_size} px",
            where=where,
            hint="crop the image, or leave it out",
        )
