"""The picture of docs/architecture.md: one image on its way through the stages, and the files between them.

    python -m benchmarks.architecture_picture --run runs/demo --train shapes_train --test shapes_test

Boxes and arrows are those of the stages' declarations (`stages.core.registry`), so the picture cannot be out of date;
what a box shows is read from a finished run. Needs matplotlib (extra ``bench``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.plots import new_figure
from benchmarks.readme_picture import few_colors
from stages.core.datasets.catalog import data_root, open_split
from stages.core.datasets.images import load_image
from stages.core.registry import CHAIN, Step, chain_specs, chain_steps, stage_spec
from stages.core.spec import BOTH, Role
from stages.core.viz.drawing import Picture, save_png
from stages.core.viz.panels import image_panels, read_artifacts
from stages.core.viz.run_facts import read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMN, ROW, LINE = 1.5, 2.1, 0.13
"""Distance of columns, rows and lines of text, in widths of a picture."""
ROW_OF: dict[Role, float] = {"train": 0.0, "test": -ROW}
TEXT, WEIGHTS, DATA = "#1a1a1a", "#b04a00", "#1f5fa8"
SHOWN = {"cam": "Fine map"}
"""Which of a stage's pictures to show where the last is not the telling one."""


@dataclass(frozen=True)
class Arrow:
    """A file between two steps."""

    source: Step
    target: Step
    file_name: str


def arrows() -> list[Arrow]:
    """Return every file that one step reads and another has written."""
    found = []
    for step, sources in chain_steps().items():
        read = [needed.file_name for needed in stage_spec(step.stage).inputs if step.role in needed.roles]
        found += [Arrow(source, step, name) for source, name in zip(sources, read, strict=True)]
    return found


def pictures(run: Path, split_name: str, data: Path, number: int) -> dict[str, Picture]:
    """Return stage -> what it made of one image of a split; ``image`` is the image itself."""
    facts = read_run(run, (split_name,))
    split = open_split(split_name, data)
    artifacts = read_artifacts(
        facts.finished(split_name), split.limited(facts.limit(split_name) or len(split.ids))
    )
    panels = image_panels(artifacts, split, split.ids[number], None)
    shown = {panel.stage: panel.picture for panel in panels}
    return shown | {panel.stage: panel.picture for panel in panels if SHOWN.get(panel.stage) == panel.title}


def place(step: Step) -> tuple[float, float]:
    """Return the middle of a step's box."""
    return (1 + CHAIN.index(step.stage)) * COLUMN, ROW_OF[step.role]


def draw_box(
    axes: Axes, middle: tuple[float, float], title: str, below: Sequence[str], picture: Picture | None
) -> None:
    """Draw a picture with its title above and the files it stands for below."""
    x, y = middle
    if picture is not None:
        height, width = (side / max(picture.shape[:2]) for side in picture.shape[:2])
        axes.imshow(picture, extent=(x - width / 2, x + width / 2, y - height / 2, y + height / 2), zorder=2)
    axes.text(x, y + 0.55, title, ha="center", va="bottom", fontsize=12, weight="bold", color=TEXT)
    for line, name in enumerate(below):
        axes.text(
            x,
            y - 0.55 - line * LINE,
            name,
            ha="center",
            va="top",
            fontsize=8,
            family="monospace",
            color=color_of(name),
        )


def color_of(file_name: str) -> str:
    """Return one color for weights, another for data."""
    return WEIGHTS if file_name.endswith(".safetensors") else DATA


def draw_arrow(axes: Axes, arrow: Arrow) -> None:
    """Draw one file: dashed from the train split to the test split, solid within one."""
    (x1, y1), (x2, y2) = place(arrow.source), place(arrow.target)
    style = {
        "arrowstyle": "-|>",
        "color": color_of(arrow.file_name),
        "linewidth": 1.4,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    if x1 == x2:
        lines = len(stage_spec(arrow.source.stage).output_names(arrow.source.role))
        start, end = (x1, y1 - 0.58 - lines * LINE), (x2, y2 + 0.75)
        style["linestyle"] = "--"
    elif x2 - x1 < 1.5 * COLUMN:
        start, end = (x1 + 0.52, y1), (x2 - 0.52, y2)
    else:
        start, end = (x1 + 0.2, y1 + 0.76), (x2 - 0.2, y2 + 0.76)
        style["connectionstyle"] = "arc3,rad=-0.12"
    axes.annotate("", xy=end, xytext=start, arrowprops=style, zorder=3)


def draw(axes: Axes, shown: dict[Role, dict[str, Picture]], split_names: dict[Role, str]) -> None:
    """Draw both rows: the train split above, the test split below."""
    for role in BOTH:
        draw_box(axes, (0, ROW_OF[role]), split_names[role], (_given(role),), shown[role].get("image"))
        x, y = place(Step(CHAIN[0], role))
        axes.annotate(
            "", (x - 0.52, y), (0.52, y), arrowprops={"arrowstyle": "-|>", "color": DATA, "linewidth": 1.4}
        )
        for spec in chain_specs():
            if names := spec.output_names(role):
                step = Step(spec.name, role)
                draw_box(axes, place(step), spec.name, names, shown[role].get(spec.name))
    for arrow in arrows():
        draw_arrow(axes, arrow)
    axes.set_xlim(-0.75, len(CHAIN) * COLUMN + 0.75)
    axes.set_ylim(-ROW - 0.75, 1.05)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _given(role: Role) -> str:
    return "images and tags" if role == "train" else "images alone"


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the picture and say how large it is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--train", default="shapes_train")
    parser.add_argument("--test", default="shapes_test")
    parser.add_argument(
        "--image", type=int, nargs=2, default=(0, 0), help="position of the image in each split"
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/images/architecture.png"))
    options = parser.parse_args(arguments)

    names: dict[Role, str] = {"train": options.train, "test": options.test}
    shown = {
        role: pictures(options.run, names[role], data_root(options.data), number)
        for role, number in zip(BOTH, options.image, strict=True)
    }
    figure, axes = new_figure()
    figure.set_size_inches(14.5, 4.9)
    draw(axes, shown, names)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=110)
    save_png(options.out, few_colors(load_image(options.out)))
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
