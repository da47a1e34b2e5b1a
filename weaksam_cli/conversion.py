"""``weaksam convert``: boxes of a run, or of any COCO data set, in the forms that other tools open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weaksam_cli import completion
from weaksam_cli.options import Options, use, with_options

if TYPE_CHECKING:
    from stages.core.artifacts.exchange.label_formats import LabelFormat

FormatsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="yolo|voc|csv|labelstudio",
        help="Write the boxes in this form; may be repeated.",
        autocompletion=completion.label_formats,
    ),
]


@with_options(
    use("out", help="Output folder; default labels beside the file."), "overwrite", "as_json", panel=None
)
def convert(
    options: Options,
    source: Annotated[
        Path,
        typer.Argument(
            help="predictions.json, pgt.json or another COCO data set, or a folder that holds one."
        ),
    ],
    formats: FormatsOption = None,
) -> None:
    """Write boxes as YOLO text files, VOC XML, one CSV, or tasks for Label Studio."""
    from stages.core.artifacts.exchange.label_formats import write_labels
    from stages.core.errors import MissingInputError, OutputExistsError, UsageError

    wanted = label_formats(formats)
    if not wanted:
        raise UsageError("which form?", where="--format", hint="yolo, voc, csv or labelstudio")
    file = _data_set(source)
    if file is None:
        raise MissingInputError(
            "no data set of boxes is here",
            where=source,
            hint="give predictions.json of predict or pgt.json of pgt",
        )
    out = options.out or file.parent / "labels"
    written = {}
    for name in wanted:
        if (out / name).exists() and not options.overwrite:
            raise OutputExistsError(
                "exists already", where=out / name, hint="give --overwrite or another --out"
            )
        written[name] = str(write_labels(file, name, out / name))
    if options.as_json:
        typer.echo(json.dumps({"source": str(file), "written": written}))
    else:
        for path in written.values():
            typer.echo(path)


def label_formats(given: Sequence[str] | None) -> list[LabelFormat]:
    """Forms that were asked for, each once.

    Raises:
        UsageError: there is no such form.
    """
    from stages.core.artifacts.exchange.label_formats import LABEL_FORMATS
    from stages.core.errors import UsageError, did_you_mean

    wanted: list[LabelFormat] = []
    for text in dict.fromkeys(given or ()):
        name = next((known for known in LABEL_FORMATS if known == text), None)
        if name is None:
            raise UsageError(
                f"there is no form '{text}'", where="--format", hint=did_you_mean(text, LABEL_FORMATS)
            )
        wanted.append(name)
    return wanted


def _data_set(source: Path) -> Path | None:
    """The COCO data set that a path means: a file, or what a stage's or a prediction's folder holds."""
    if source.is_file():
        return source
    names = ("predictions.json", "predict/predictions.json", "pgt.json", "pgt_masks.json")
    found = [source / name for name in names if (source / name).is_file()]
    found = found or sorted(source.glob("pgt/*/pgt.json"))
    return found[0] if found else None
