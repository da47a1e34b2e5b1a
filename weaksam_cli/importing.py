"""``weaksam import``: files of the published release as this project's, so that one stage can be checked alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from weaksam_cli.options import Options, use, with_options
from weaksam_cli.state import data_root


@with_options(
    use("split", help="Split that the file was made for."),
    use("out", default=Path("imported"), help="Output folder, outside of a run folder."),
    "overwrite",
    "data",
    panel=None,
)
def import_file(
    options: Options,
    file: Annotated[
        Path, typer.Argument(help="Pickle of proposals, MIST's bbox.json, or VOC's pseudo boxes.")
    ],
    kind: Annotated[
        Literal["proposals", "detections", "pgt"] | None,
        typer.Option("--kind", help="What it holds; default by its form."),
    ] = None,
    half_open: Annotated[
        bool,
        typer.Option(
            "--half-open", help="Corners of proposals are behind the last pixel; default on it, as released."
        ),
    ] = False,
) -> None:
    """Turn a file of the release into proposals.h5, detections.json or pgt.json."""
    from stages.core.artifacts.coco_json import write_dataset, write_results
    from stages.core.artifacts.exchange.foreign import (
        mist_detections,
        proposal_table,
        proposals_of,
        voc_pseudo_boxes,
    )
    from stages.core.artifacts.exchange.plain_pickle import load_plain_pickle
    from stages.core.artifacts.files import read_json
    from stages.core.artifacts.schemas import PROPOSALS
    from stages.core.artifacts.table import write_table
    from stages.core.datasets.catalog import locate, open_split
    from stages.core.datasets.images import image_size
    from stages.core.errors import OutputExistsError

    root = data_root(options.data)
    split, layout = open_split(options.split, root), locate(options.split, root).dataset.layout
    pickled = file.suffix in (".pkl", ".pickle")
    content = load_plain_pickle(file) if pickled else read_json(file)
    kind = kind or ("proposals" if pickled else "detections" if isinstance(content, list) else "pgt")
    assert options.out is not None
    out = (
        options.out / {"proposals": "proposals.h5", "detections": "detections.json", "pgt": "pgt.json"}[kind]
    )
    if out.exists() and not options.overwrite:
        raise OutputExistsError(
            "the file is there already", where=out, hint="use --overwrite, or another --out"
        )
    sizes = {
        image_id: image_size(split.image_path(image_id)) for image_id in split.ids if kind != "detections"
    }
    if kind == "proposals":
        boxes = proposals_of(content, split, layout, inclusive=not half_open)
        write_table(out, PROPOSALS, proposal_table(boxes, sizes))
        count = sum(map(len, boxes.values()))
    else:
        read = mist_detections if kind == "detections" else voc_pseudo_boxes
        found = read(content, split, layout)
        count = sum(map(len, found.values()))
        if kind == "detections":
            write_results(out, split, found)
        else:
            write_dataset(out, split, found, sizes, {"imported": file.name})
    typer.echo(f"{count} boxes on {len(split.ids)} images -> {out}")
