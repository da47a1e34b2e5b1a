"""Line plots as PNG files, drawn with Pillow: the benchmarks need no plotting package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

Points = Sequence[tuple[float, float]]
SIZE, LEFT, TOP, RIGHT, BOTTOM = (900, 570), 70, 60, 290, 60
COLOURS = (
    "#1b6ca8", "#d1495b", "#2e8b57", "#e08e0b", "#6a4c93", "#555555", "#17a2a2", "#b0578d", "#8a6d3b", "#000000",
    "#7fb800", "#ff7f9e",
)  # fmt: skip


def line_plot(
    path: Path,
    title: str,
    x_label: str,
    y_label: str,
    lines: Mapping[str, Points],
    *,
    logarithmic: bool = True,
    y_range: tuple[float, float] = (0.0, 1.0),
    errors: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Draw named lines from the least to the largest x.

    Args:
        path: PNG file; its folder is made.
        title: Above the plot.
        x_label: Below it.
        y_label: At its upper left corner.
        lines: Name -> points; a name without points is left out.
        logarithmic: Whether the x axis is, which needs positive x.
        y_range: Lowest and highest y.
        errors: Name -> half the height of a bar at every point.
    """
    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)
    lines = {name: points for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points]
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    bottom, top = y_range

    def along(x: float) -> float:
        return log10(x) if logarithmic else x

    low = along(min(xs))
    high = max(along(max(xs)), low + 0.004)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * (along(x) - low) / (high - low), TOP + height * (top - y) / (top - bottom)

    for tick in linear_ticks(bottom, top):
        y = place(min(xs), tick)[1]
        draw.line((LEFT, y, LEFT + width, y), fill="#dddddd")
        draw.text((LEFT - 8, y), f"{tick:.3g}", fill="black", font=small, anchor="rm")
    decades: list[float] = [t * 10**power for power in range(5) for t in (1, 2, 5)]
    for tick in decades if logarithmic else linear_ticks(low, high):
        if low <= along(tick) <= high:
            x = place(tick, bottom)[0]
            draw.line((x, TOP, x, TOP + height), fill="#eeeeee")
            draw.text((x, TOP + height + 6), f"{tick:g}", fill="black", font=small, anchor="ma")
    for number, (name, points) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([place(x, y) for x, y in points], fill=colour, width=3, joint="curve")
        for (x, y), half in zip(points, (errors or {}).get(name, [0.0] * len(points)), strict=True):
            draw.line((*place(x, min(y + half, top)), *place(x, max(y - half, bottom))), fill=colour)
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


def linear_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, three to seven of them."""
    rough = (high - low) / 5
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.8 * rough)
    first = ceil(low / step - 1e-9)
    return [round(step * i, 10) for i in range(first, floor(high / step + 1e-9) + 1)]
