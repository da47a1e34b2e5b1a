"""The funnel of a split: from images to maps, points, proposals, detections, pseudo boxes and instances.

Each step says how much there is, what was left out on the way and why, and which images end there empty. All of it is
read from the artifacts; no ground truth is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.core.artifacts.files import read_json
from stages.core.artifacts.manifest import Manifest
from stages.core.artifacts.schemas import MAP_KINDS, SOURCE_BITS
from stages.core.artifacts.table import Table
from stages.core.datasets.split import WeakSplit
from stages.core.errors import WeakSamError
from stages.core.formatting import format_number
from stages.core.structures.detections import Detections
from stages.core.viz.panels import SplitArtifacts

EMPTY = {
    "maps": "no class was found in it",
    "points": "no peak is high enough",
    "proposals": "no mask passed the filters",
    "detections": "no detection reached the score threshold",
    "pseudo boxes": "no detection of its tags",
    "pseudo masks": "it has no pseudo box",
    "instances": "no detection reached the score threshold",
}
"""What is counted -> why an image has none of it, where the stage does not say itself."""


@dataclass(frozen=True)
class FunnelStep:
    """One step of the funnel.

    Attributes:
        stage: Stage that made it; empty for the images themselves.
        what: What is counted.
        count: How many there are in all images.
        per_image: Mean over the images.
        notes: Where they come from, and what was left out and why, one clause each.
        empty: Image id -> why it has none.
    """

    stage: str
    what: str
    count: int
    per_image: float
    notes: tuple[str, ...]
    empty: dict[str, str]


def funnel(
    artifacts: SplitArtifacts,
    split: WeakSplit,
    folders: Mapping[str, Path],
    manifests: Mapping[str, Manifest],
) -> tuple[FunnelStep, ...]:
    """Return the steps of a split in the order of the chain.

    Args:
        artifacts: What the finished stages wrote.
        split: The images, cut as the stages' were.
        folders: Stage -> folder, of those that finished.
        manifests: Stage -> manifest.
    """
    out = [f"{len(split.problems)} listed images left out"] if split.problems else []
    steps = [FunnelStep("", "images", len(split.ids), 1.0, tuple(out), {})]
    for stage, table in artifacts.tables.items():
        steps.append(_of_table(stage, table, split.ids, _failures(manifests, stage)))
    for (stage, output), boxes in artifacts.boxes.items():
        what = {"pgt": "pseudo boxes", "segmentations": "instances"}.get(output.kind, "detections")
        if output.kind == "pgt" and stage != "pgt":
            what = "pseudo masks"
        info = _info(folders[stage] / output.file_name) if what == "pseudo boxes" else {}
        reasons = {**info.get("without_boxes", {}), **_failures(manifests, stage)}
        notes = _dropped(info) if info else _by_class(boxes, split.classes)
        counts = {i: len(boxes.get(i, Detections.empty())) for i in split.ids}
        steps.append(_step(stage, what, counts, notes, reasons))
    return tuple(steps)


def _step(
    stage: str, what: str, counts: Mapping[str, int], notes: Sequence[str], reasons: Mapping[str, str]
) -> FunnelStep:
    total = sum(counts.values())
    empty = {i: reasons.get(i, EMPTY[what]) for i, count in counts.items() if not count}
    return FunnelStep(stage, what, total, total / max(len(counts), 1), tuple(notes), empty)


def _of_table(stage: str, table: Table, ids: Sequence[str], reasons: Mapping[str, str]) -> FunnelStep:
    what, column = {"cam": ("maps", "kind"), "prompt": ("points", "source")}.get(
        stage, ("proposals", "source")
    )
    values = table.columns[column]
    if what == "proposals":
        notes = _counted(SOURCE_BITS, lambda bit: (values & bit) > 0)
    else:
        notes = _counted({name: i for i, name in enumerate(MAP_KINDS)}, lambda kind: values == kind)
    counts = {i: table.span(i).stop - table.span(i).start if i in table else 0 for i in ids}
    return _step(stage, what, counts, notes, reasons)


def _counted(keys: Mapping[str, int], chosen: Callable[[int], NDArray[np.bool_]]) -> list[str]:
    numbers = {name: int(chosen(key).sum()) for name, key in keys.items()}
    return [f"{format_number(number)} {name}" for name, number in numbers.items() if number]


def _by_class(boxes: Mapping[str, Detections], classes: Sequence[str]) -> list[str]:
    found = [one.classes for one in boxes.values() if len(one)]
    counts = (
        np.bincount(np.concatenate(found), minlength=len(classes)) if found else np.zeros(len(classes), int)
    )
    without = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    return [f"none of {', '.join(without)}"] if without else []


def _dropped(info: Mapping[str, Any]) -> list[str]:
    """Return what became of the detections of tagged classes, by the statistics that ``pgt`` wrote."""
    classes = info.get("classes", [])
    detected, above, kept = (
        sum(int(entry.get(name, 0)) for entry in classes)
        for name in ("detections", "above_threshold", "boxes")
    )
    notes = [f"of {format_number(detected)} detections of a tag"]
    if detected > above:
        notes.append(f"{format_number(detected - above)} dropped: score below the threshold")
    if above > kept:
        notes.append(f"{format_number(above - kept)} dropped: part of, or the same as, a better box")
    without = [
        str(entry["class"]) for entry in classes if entry.get("tagged_images") and not entry.get("boxes")
    ]
    return notes + ([f"no box for {', '.join(without)}"] if without else [])


def _info(path: Path) -> dict[str, Any]:
    try:
        loaded = read_json(path)
    except WeakSamError:  # named among the problems of the page already
        return {}
    info = loaded.get("info") if isinstance(loaded, dict) else None
    return info if isinstance(info, dict) and isinstance(info.get("classes"), list) else {}


def _failures(manifests: Mapping[str, Manifest], stage: str) -> dict[str, str]:
    found = manifests[stage].failures if stage in manifests else []
    return {failure["id"]: failure["reason"] for failure in found}
