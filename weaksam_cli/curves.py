"""``weaksam tensorboard``: the training curves of a run as events that TensorBoard shows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from weaksam_cli import completion
from weaksam_cli.options import Options, use, with_options

LOOK_EVERY_SECONDS = 10.0


@with_options(use("out", help="Folder of events; default <run>/tensorboard."), "as_json", panel=None)
def tensorboard(
    options: Options,
    folder: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run folder.", autocompletion=completion.runs)
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on with what is trained meanwhile, until Ctrl-C.")
    ] = False,
) -> None:
    """Write the training curves of a run for TensorBoard; needs the extra log."""
    from stages.core.viz.tensorboard import CurveWriter

    out = options.out or folder / "tensorboard"
    writer = CurveWriter(folder, out)
    points = writer.write_new()
    if options.as_json:
        typer.echo(json.dumps({"out": str(out), "points": points}))
    else:
        typer.echo(f"tensorboard: {points} points -> {out}")
        typer.echo(f"  next: tensorboard --logdir {out}")
    while follow:
        time.sleep(LOOK_EVERY_SECONDS)
        writer.write_new()
