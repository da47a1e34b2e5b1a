"""``weaksam rank RUN``: the train images in the order in which a person should look at them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from weaksam_cli import completion
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.state import data_root

TEACHER, STUDENT = ("pgt", "pgt.json"), ("retrain", "detections.json")


@dataclass(frozen=True)
class RankedImage:
    """One image: its place from 1, what it is ordered by, and why."""

    place: int
    id: str
    file_name: str
    disagreement: float
    boxes: int
    reason: str


@with_options(
    use("split", default="", env=None, help="Train split; default the only one of the run."),
    "data",
    "as_json",
    panel=None,
)
def rank(
    options: Options,
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder.", autocompletion=completion.runs)
    ],
    top: Annotated[int, typer.Option("--top", min=0, help="Print only the first N; 0 = all.")] = 20,
) -> None:
    """Order the train images by how much the retrained detector contradicts the pseudo boxes that it learned from."""
    ranked = ranked_images(folder, options.split or train_split_of(folder), data_root(options.data))
    shown = ranked[:top] if top else ranked
    if options.as_json:
        typer.echo(json.dumps([image.__dict__ for image in shown]))
        return
    for image in shown:
        typer.echo(
            f"{image.place:>5}  {image.disagreement:6.2f}  {image.file_name}: {image.boxes} boxes; {image.reason}"
        )
    if len(shown) < len(ranked):
        typer.echo(f"and {len(ranked) - len(shown)} more (--top 0)")


def train_split_of(run: Path) -> str:
    """The split that `pgt` and `retrain` have finished in a run.

    Raises:
        MissingInputError: there is none.
        UsageError: there are several.
    """
    from stages.core.artifacts.manifest import MANIFEST_NAME
    from stages.core.errors import MissingInputError, UsageError

    made = [
        {p.parent.name for p in (run / stage).glob(f"*/{MANIFEST_NAME}")} for stage, _ in (TEACHER, STUDENT)
    ]
    splits = sorted(made[0] & made[1])
    if not splits:
        raise MissingInputError(
            "pgt and retrain have not both finished on a train split", where=run, hint=f"weaksam status {run}"
        )
    if len(splits) > 1:
        raise UsageError(f"several splits: {', '.join(splits)}", where="--split", hint="choose one")
    return splits[0]


def ranked_images(run: Path, split_name: str, root: Path) -> list[RankedImage]:
    """Order the images of a train split, those first in which most is expected to be wrong.

    Images whose boxes are those of people are left out, as are negatives.
    """
    from stages.core.artifacts.coco_json import read_dataset, read_results
    from stages.core.artifacts.manifest import read_manifest
    from stages.core.datasets.catalog import open_split
    from stages.core.structures.detections import Detections
    from stages.core.structures.disagreement import disagreement

    made = read_manifest(run / TEACHER[0] / split_name)
    split = open_split(split_name, root, classes=made.classes)
    split = split if made.limit is None else split.limited(made.limit)
    taught = read_dataset(run / TEACHER[0] / split_name / TEACHER[1], split)
    said = read_results(run / STUDENT[0] / split_name / STUDENT[1], split)
    found = []
    for image_id in split.ids:
        tags = split.tags(image_id)
        if tags and image_id not in taught.trusted:
            boxes = taught.boxes.get(image_id, Detections.empty())
            found.append((disagreement(boxes, said[image_id], tags), image_id, len(boxes)))
    found.sort(key=lambda entry: (-entry[0].total, -entry[0].added, entry[1]))
    return [
        RankedImage(place, image_id, split.file_name(image_id), round(own.total, 3), boxes, own.reason())
        for place, (own, image_id, boxes) in enumerate(found, start=1)
    ]
