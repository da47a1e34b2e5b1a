"""``weaksam status`` and ``weaksam show``: how far a run is, and what a stage made of one image."""

from __future__ import annotations

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from weaksam_cli import completion
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.state import data_root


@with_options("as_json", panel=None)
def status(
    options: Options,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN", help="Run folder; without one, all below runs/.", autocompletion=completion.runs
        ),
    ] = None,
) -> None:
    """Say of every step whether it is done, stale, running or stopped, and how to go on."""
    from stages.core.errors import MissingInputError
    from stages.core.runtime.status import run_status

    below = [path for path in sorted(Path("runs").glob("*")) if path.is_dir()]
    found = {run: run_status(run) for run in (below if folder is None else [folder])}
    if not any(found.values()):
        raise MissingInputError(
            "no stage has begun here",
            where=folder or "runs",
            hint="weaksam run DATASET, or name a run folder",
        )
    if options.as_json:
        typer.echo(json.dumps({str(run): [asdict(step) for step in steps] for run, steps in found.items()}))
        return
    for run, steps in found.items():
        if not steps:
            continue
        typer.echo(f"{run}:")
        for step in steps:
            typer.echo(f"  {step.state:<8} {step.stage} {step.split}: {step.detail}")
        todo = [step.command for step in steps if step.command]
        typer.echo(f"  next: {todo[0]}" if todo else f"  next: weaksam predict PHOTOS --run {run}")


@with_options(
    "data", use("out", help="Folder of the picture; default <stage's folder>/viz."), "as_json", panel=None
)
def show(
    options: Options,
    artifact: Annotated[Path, typer.Argument(help="A stage's folder, or a file in it.")],
    image: Annotated[str, typer.Option("--image", help="Id of the image.")] = "",
) -> None:
    """Draw what a finished stage made of one image, and print where the picture is."""
    from stages.core.artifacts.manifest import read_manifest
    from stages.core.datasets.catalog import open_split
    from stages.core.errors import UsageError, did_you_mean

    folder = artifact if artifact.is_dir() else artifact.parent
    made = read_manifest(folder)
    split = open_split(made.split, data_root(options.data), classes=made.classes)
    split = split if made.limit is None else split.limited(made.limit)
    if image not in split.ids:
        raise UsageError(
            f"split {made.split} has no image '{image}'", where="--image", hint=did_you_mean(image, split.ids)
        )
    viz = importlib.import_module(f"stages.{made.stage}.viz")
    pictures = viz.draw(folder, split, [image], options.out or folder / "viz")
    if options.as_json:
        typer.echo(json.dumps({"pictures": [str(path) for path in pictures]}))
    else:
        for path in pictures:
            typer.echo(path)
