"""``weaksam export``: detections and segmentations in the form that evaluation servers want."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weaksam_cli.options import Options, use, with_options
from weaksam_cli.state import data_root


@with_options(
    use("split", help="Split that the artifact was made for."),
    use("out", help="Output folder; default <folder of the artifact>/submission."),
    "limit",
    "overwrite",
    "data",
    panel=None,
)
def export(
    options: Options,
    artifact: Annotated[Path, typer.Argument(help="detections.json or segmentations.json of a test split.")],
    form: Annotated[
        Literal["voc", "coco", "release"] | None,
        typer.Option(
            "--format",
            help="Server, or the forms of the release; default by the data set's layout.",
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option("--subset", help="Subset's name on the server; default the split's, e.g. test."),
    ] = None,
    trained_on: Annotated[
        Literal["any", "own"],
        typer.Option(
            "--trained-on", help="VOC: comp4 and comp6 for any training data, comp3 and comp5 for VOC's own."
        ),
    ] = "any",
    name: Annotated[
        str, typer.Option("--name", help="COCO: name of the method in the file's name.")
    ] = "weaksam",
    score_thresh: Annotated[
        float, typer.Option("--score-thresh", min=0, max=1, help="VOC label images: least score of a mask.")
    ] = 0.3,
) -> None:
    """Write what the VOC or COCO server takes: text files per class, label images, or a zip.

    Or proposals.h5, detections.json and pgt.json in the forms of the published release.
    """
    from stages.core.errors import OutputExistsError

    folder = options.out or artifact.parent / "submission"
    if folder.exists() and any(folder.iterdir()) and not options.overwrite:
        raise OutputExistsError(
            "the folder is not empty", where=folder, hint="use --overwrite, or another --out"
        )
    root = data_root(options.data)
    if form == "release":
        typer.echo(f"{write_release(artifact, options.split, root, folder)}")
        return
    files = write_submission(
        artifact,
        options.split,
        root,
        folder,
        form=form,
        subset=subset,
        trained_on=trained_on,
        name=name,
        score_thresh=score_thresh,
        limit=options.limit,
    )
    typer.echo(f"{len(files)} files -> {folder}")


def write_submission(
    artifact: Path,
    split_name: str,
    root: Path,
    folder: Path,
    *,
    form: str | None = None,
    subset: str | None = None,
    trained_on: str = "any",
    name: str = "weaksam",
    score_thresh: float = 0.3,
    limit: int | None = None,
) -> list[Path]:
    """Write the files of one artifact; `form` is that of the data set's layout unless given.

    Raises:
        UsageError: a data set of folders, for which there is no server.
        SchemaError: results for unknown images or classes.
    """
    from stages.core.artifacts.coco_json import read_results
    from stages.core.artifacts.exchange.submissions import (
        write_coco_zip,
        write_voc_detections,
        write_voc_segmentations,
    )
    from stages.core.datasets.catalog import locate, open_split
    from stages.core.datasets.images import image_size
    from stages.core.errors import UsageError

    source = locate(split_name, root)
    form = form or source.dataset.layout
    if form not in ("voc", "coco"):
        raise UsageError(
            f"split '{split_name}' is of no server",
            where="--format",
            hint="give --format voc or --format coco",
        )
    split = open_split(split_name, root)
    if limit is not None:
        split = split.limited(limit)
    found = read_results(artifact, split)
    subset = subset or source.subset_name.removeprefix("seg_")
    if form == "coco":
        return [write_coco_zip(folder, split, subset, found, name)]
    if any(own.masks is not None and len(own) for own in found.values()):
        sizes = {image_id: image_size(split.image_path(image_id)) for image_id in split.ids}
        return write_voc_segmentations(folder, split, subset, found, sizes, trained_on, score_thresh)
    return write_voc_detections(folder, split, subset, found, trained_on)


def write_release(artifact: Path, split_name: str, root: Path, folder: Path) -> Path:
    """Write proposals (`.h5`), detections or pseudo boxes (`.json`) as the release has them.

    Raises:
        InputError: the file is none of these, or of another split.
    """
    import pickle

    from stages.core.artifacts.coco_json import read_dataset, read_results
    from stages.core.artifacts.exchange.foreign import (
        release_detections,
        release_proposals,
        release_pseudo_boxes,
    )
    from stages.core.artifacts.files import atomic_path, read_json, write_json
    from stages.core.artifacts.schemas import PROPOSALS, rows_to_boxes
    from stages.core.artifacts.table import read_split_table
    from stages.core.datasets.catalog import locate, open_split

    split, layout = open_split(split_name, root), locate(split_name, root).dataset.layout
    if artifact.suffix == ".h5":
        table = read_split_table(artifact, PROPOSALS, split.name, split.ids)
        boxes = {image_id: rows_to_boxes(table.rows(image_id)) for image_id in table.ids}
        path = folder / "proposals.pkl"
        with atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(release_proposals(boxes, split, layout), protocol=4))
    elif isinstance(read_json(artifact), list):
        path = folder / "bbox.json"
        write_json(path, release_detections(read_results(artifact, split), split))
    else:
        path = folder / "pseudo_boxes.json"
        write_json(path, release_pseudo_boxes(read_dataset(artifact, split).boxes, split, layout))
    return path


def submissions_of(figures: dict[str, Any], run: Path, root: Path) -> list[str]:
    """Files for the server of every test split of a run that has no ground truth, and a line on each.

    Only VOC and COCO have a server; the files lie in ``<run>/submission/<stage>``.
    """
    from stages.core.datasets.catalog import locate

    lines = []
    for row in figures["rows"]:
        if not row["problem"] or row["split"] != figures["test"]:
            continue
        if row["task"] not in ("detections", "segmentations"):
            continue
        if locate(row["split"], root).dataset.layout not in ("voc", "coco"):
            continue
        folder = run / "submission" / row["stage"]
        write_submission(run / row["artifact"], row["split"], root, folder, limit=row["limit"])
        lines.append(f"{row['split']} has no ground truth; for its server: {folder}")
    return lines
