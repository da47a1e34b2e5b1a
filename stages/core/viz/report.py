"""``report.html``: one self-contained page about a run folder.

What was run, what it scored, and a picture of every stage for the same handful of images, with the
ground truth beside them where there is one. Nothing is loaded from elsewhere: styles, curves and pictures are
inside the page. Partial runs give partial pages.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from stages.core.artifacts.files import write_text
from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.errors import ImageError, InputError, MissingInputError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.tasks import load_labeled_split
from stages.core.formatting import format_duration, format_number
from stages.core.registry import CHAIN
from stages.core.viz.charts import Chart, line_chart
from stages.core.viz.comparison import Comparison, compare
from stages.core.viz.drawing import encode_jpeg
from stages.core.viz.funnel import FunnelStep, funnel
from stages.core.viz.image_choice import Order, chosen_images
from stages.core.viz.palette import SOURCE_COLORS, Color, class_color
from stages.core.viz.panels import Panel, image_panels, read_artifacts
from stages.core.viz.run_facts import RunFacts, StageFacts, read_run

TRAIN_IMAGES = 5
TEST_IMAGES = 4
MAX_BYTES = 6_000_000
"""Of a page whose number of images nobody asked for."""
MOST_BYTES = 30_000_000
"""Of a page with as many images as were asked for; images that do not fit are left out, and the page says so."""
EMPTY_IMAGES_LISTED = 200
COURSE = ("lr", "lr_factor", "step_s", "data_s", "images_per_second", "peak_memory_mib")
"""How a training goes, not what it learns: quantities without a curve."""
QUALITIES = (82, 70, 55, 40, 25)
"""JPEG qualities tried in turn until the page is small enough."""


@dataclass(frozen=True)
class ImageStory:
    """One image through the stages: its id, its tags with their colours, and the pictures."""

    id: str
    tags: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class SplitStories:
    """The images of one split."""

    split: str
    role: str
    images: int
    has_ground_truth: bool
    order: Order
    stories: tuple[ImageStory, ...]
    funnel: tuple[FunnelStep, ...]

    @property
    def columns(self) -> list[str]:
        """Titles of all pictures in the order of the chain: a column of the page each, so that one looks down it."""
        order = ["image", *CHAIN, "ground_truth"]
        panels = [panel for story in self.stories for panel in story.panels]
        return list(dict.fromkeys(p.title for p in sorted(panels, key=lambda one: order.index(one.stage))))


def write_report(
    run: Path,
    data_root: Path,
    train: str,
    test: str,
    out: Path,
    *,
    images: int | None = None,
    order: Order = "spread",
    other: Path | None = None,
) -> Path:
    """Write the page of a run folder.

    Args:
        run: Run folder; stages that have not finished are named as such.
        data_root: Folder of data sets.
        train: Train split.
        test: Test split; empty when the data set has none.
        out: HTML file to write.
        images: Images of each split to show; None shows a few. More than fit into 30 MB are left out.
        order: Which images, and in which order.
        other: Run folder to compare with.

    Returns:
        ``out``.

    Raises:
        MissingInputError: the run folder holds no stage of these splits.
        InputError: a split cannot be opened.
    """
    splits = tuple(name for name in (train, test) if name)
    facts = read_run(run, splits)
    if not facts.stages:
        raise MissingInputError(
            f"no stage of {' or '.join(splits)} here", where=run, hint="run a stage first, or check --run"
        )
    problems = list(facts.problems)
    compared = None if other is None else compare(facts, read_run(other, splits))
    stories = []
    for name, count in zip(splits, (TRAIN_IMAGES, TEST_IMAGES), strict=False):
        if facts.finished(name):
            stories.append(_split_stories(facts, name, data_root, images or count, order, problems))
    values = _page_values(facts, problems, compared)
    write_text(out, _fitting_page(values, stories, MAX_BYTES if images is None else MOST_BYTES))
    return out


def _fitting_page(values: dict[str, Any], stories: list[SplitStories], most_bytes: int) -> str:
    """Return the page in the best quality in which it is small enough, with fewer images if in none."""
    template = _environment().get_template("report.html.j2")
    while True:
        for quality in QUALITIES:
            page = template.render(
                values, stories=stories, picture=lambda panel, q=quality: _data_uri(panel, q)
            )
            if len(page.encode()) <= most_bytes:
                return page
        if not any(len(one.stories) > 1 for one in stories):
            return page
        stories = [replace(one, stories=one.stories[: (len(one.stories) + 1) // 2]) for one in stories]


def _split_stories(
    facts: RunFacts, name: str, data_root: Path, count: int, order: Order, problems: list[str]
) -> SplitStories:
    classes, limit = facts.classes(name), facts.limit(name)
    split = open_split(name, data_root, classes=classes)
    cut = split if limit is None else split.limited(limit)
    ground_truth = _ground_truth_of(name, data_root, limit, classes)
    artifacts = read_artifacts(facts.finished(name), cut)
    problems += artifacts.problems
    stories = []
    last = list(artifacts.boxes.values())[-1] if artifacts.boxes else {}
    for image_id in chosen_images(cut.ids, count, order, last, ground_truth):
        try:
            panels = image_panels(artifacts, cut, image_id, ground_truth.get(image_id))
        except ImageError as error:
            problems.append(f"image {image_id}: {error.what}")
            continue
        stories.append(ImageStory(image_id, _tags(cut, image_id), tuple(panels)))
    manifests = {s.stage: s.manifest for s in facts.stages if s.manifest is not None and s.split == name}
    steps = funnel(artifacts, cut, facts.finished(name), manifests)
    return SplitStories(name, cut.role, len(cut.ids), bool(ground_truth), order, tuple(stories), steps)


def _ground_truth_of(
    name: str, data_root: Path, limit: int | None, classes: tuple[str, ...]
) -> dict[str, ImageGroundTruth]:
    try:
        return load_labeled_split(name, data_root, limit, classes).images
    except InputError:
        # Tags only, as with a folder of photos: there is nothing to lay beside the pictures.
        return {}


def _tags(split: WeakSplit, image_id: str) -> tuple[tuple[str, str], ...]:
    if not split.has_tags:
        return ()
    return tuple((split.classes[c], css_color(class_color(c))) for c in split.tags(image_id))


def css_color(color: Color) -> str:
    """An RGB colour as CSS writes it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _data_uri(panel: Panel, quality: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode_jpeg(panel.picture, quality)).decode("ascii")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("stages.core.viz", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["duration"] = format_duration
    environment.filters["words"] = words
    return environment


def words(name: str) -> str:
    """A figure's name for reading: ``mask_ap50`` is ``mask AP50``, ``recall75`` is ``recall@.75``."""
    spelled = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap25": "AP25", "ap70": "AP70", "coco": "COCO",
               "corloc": "CorLoc", "iou": "IoU", "lr": "learning-rate", "11point": "(11-point)"}  # fmt: skip
    at_iou = re.sub(r"(recall|precision)(\d\d)$", r"\1@.\2", name)
    return " ".join(spelled.get(part, part) for part in at_iou.split("_"))


def _page_values(facts: RunFacts, problems: list[str], compared: Comparison | None) -> dict[str, Any]:
    done = [s.manifest for s in facts.stages if s.manifest is not None]
    rows = (facts.figures or {}).get("rows", [])
    return {
        "run": facts.name,
        "stages": facts.stages,
        "done": done,
        "total_seconds": sum(m.wall_seconds for m in done),
        "versions": sorted({m.version for m in done}),
        "seeds": sorted({m.seed for m in done}),
        "rows": rows,
        "headlines": headlines(rows),
        "compared": compared,
        "charts": _charts(facts.stages),
        "failures": [(m.stage, m.split, f["id"], f["reason"]) for m in done for f in m.failures],
        "environment": done[-1].environment if done else {},
        "problems": problems,
        "empty_listed": EMPTY_IMAGES_LISTED,
        "sources": {name: css_color(color) for name, color in SOURCE_COLORS.items()},
    }


HEADLINES = (
    ("propose", "recall50", "of objects have a proposal (IoU ≥ 0.5)"),
    ("pgt", "precision50", "of pseudo boxes are right (IoU ≥ 0.5)"),
    ("retrain", "ap50", "AP50 of the retrained detector"),
    ("wsis", "mask_ap50", "mask AP50 of the segmenter"),
)


def headlines(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The few figures to read first, as (value, what, split); the test split's where there are both."""
    found = []
    for stage, figure, what in HEADLINES:
        values = [
            (row["metrics"][figure], row["split"])
            for row in rows
            if row["stage"] == stage and row["metrics"].get(figure) is not None
        ]
        if values:
            value, split = values[-1]
            found.append((format_number(value), what, split))
    return found


def _charts(stages: Sequence[StageFacts]) -> list[tuple[str, list[Chart]]]:
    groups = []
    for facts in stages:
        charts = []
        for phase, quantities in facts.curves.items():
            losses = {n: p for n, p in quantities.items() if "loss" in n}
            rest = {n: p for n, p in quantities.items() if n not in losses and n not in COURSE}
            drawn = [line_chart(f"{phase}: losses", losses)]
            drawn += [line_chart(f"{phase}: {words(name)}", {name: points}) for name, points in rest.items()]
            charts += [chart for chart in drawn if chart is not None]
        if charts:
            groups.append((f"{facts.stage} on {facts.split}", charts))
    return groups
