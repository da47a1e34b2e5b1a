"""Line plots as PNG files, drawn with Pillow: the benchmarks need no plotting package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]
SIZE, LEFT, TOP, RIGHT, BOTTOM = (900, 570), 70, 60, 290, 60
COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#6a4c93", "#555555", "#17a2a2", "#b0578d")


def line_plot(path: Path, title: str, x_label: str, y_label: str, lines: Mapping[str, Points]) -> None:
    """Draw named lines over a logarithmic x axis from the least to the largest x, y from 0 to 1."""
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)
    xs = [x for points in lines.values() for x, _ in points]
    low, high = log10(min(xs)), log10(max(max(xs), min(xs) * 1.01))
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * (log10(x) - low) / (high - low), TOP + height * (1 - y)

    for tick in range(0, 11, 2):
        y = place(min(xs), tick / 10)[1]
        draw.line((LEFT, y, LEFT + width, y), fill="#dddddd")
        draw.text((LEFT - 8, y), f"{tick / 10:.1f}", fill="black", font=small, anchor="rm")
    for tick in (t * 10**power for power in range(5) for t in (1, 2, 5)):
        if low <= log10(tick) <= high:
            x = place(tick, 0)[0]
            draw.line((x, TOP, x, TOP + height), fill="#eeeeee")
            draw.text((x, TOP + height + 6), str(tick), fill="black", font=small, anchor="ma")
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([place(x, y) for x, y in points], fill=colour, width=3, joint="curve")
        for x, y in points:
            across, down = place(x, y)
            draw.ellipse((across - 3, down - 3, across + 3, down + 3), fill=colour)
        down = TOP + 14 + 24 * number
        draw.line((LEFT + width + 14, down, LEFT + width + 40, down), fill=colour, width=3)
        draw.text((LEFT + width + 46, down), name, fill="black", font=small, anchor="lm")
    draw.rectangle((LEFT, TOP, LEFT + width, TOP + height), outline="black")
    draw.text((LEFT, 8), title, fill="black", font=font)
    draw.text((LEFT + width / 2, SIZE[1] - 12), x_label, fill="black", font=font, anchor="mb")
    draw.text((LEFT - 50, TOP - 6), y_label, fill="black", font=small, anchor="lb")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
