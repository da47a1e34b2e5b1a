"""``weaksam demo``: the seven stages one after the other, then figures and a report.

The same calls as the stage commands make; Make does the same with one process per stage.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.core.registry import chain_steps, load_stage
from weaksam_cli import completion
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.stage_command import resolve_settings, stage_request
from weaksam_cli.state import data_root


@with_options(
    use("run", default=Path("runs/demo"), env=None, help="Run folder."),
    use("recipe", default="demo", env=None),
    "config",
    use("assignments", metavar="STAGE.KEY=VALUE"),
    "data",
    "device",
    "precision",
    "workers",
    "seed",
    "max_failures",
)
def demo(
    options: Options,
    dataset: Annotated[
        str,
        typer.Option(
            "--dataset",
            help="Data set with a _train and a _test split.",
            autocompletion=completion.datasets,
        ),
    ] = "shapes",
    train_images: Annotated[int, typer.Option("--train-images", min=1, help="Images to learn from.")] = 112,
    test_images: Annotated[int, typer.Option("--test-images", min=1, help="Images to evaluate on.")] = 40,
) -> None:
    """Run all seven stages on the embedded data set, evaluate, and write report.html.

    Goes on where an earlier demo stopped; what changed is done again.
    """
    from stages.core.config import config_class
    from stages.core.runtime.execute import execute
    from stages.core.runtime.processes import is_main

    assert options.run is not None
    root, start = data_root(options.data), time.monotonic()
    splits = {"train": f"{dataset}_train", "test": f"{dataset}_test"}
    limits = {"train": train_images, "test": test_images}
    steps = chain_steps()
    for number, step in enumerate(steps, 1):
        stage, split = step.stage, splits[step.role]
        config = resolve_settings(
            stage, config_class(stage), options.recipe, options.config, options.assignments, {}
        )
        typer.echo(f"[{number}/{len(steps)}] {stage} {split}", err=True)
        asked = replace(options, split=split, limit=limits[step.role], resume=True, overwrite=True)
        execute(load_stage(stage), config, stage_request(asked, {}))
    seconds = time.monotonic() - start
    if not is_main():
        return
    evaluate_and_report(options.run, root, splits["train"], splits["test"])
    typer.echo(f"{len(steps)} steps in {seconds / 60:.1f} min; report: {options.run / 'report.html'}")


def evaluate_and_report(run: Path, root: Path, train: str, test: str) -> dict[str, Any]:
    """Measure everything in a run folder, print one table, write ``report.html``."""
    from stages.core.evaluation.suite import evaluate_run
    from stages.core.viz.report import write_report
    from weaksam_cli.tables import print_run_table

    figures = evaluate_run(run, root, train, test)
    print_run_table(figures)
    write_report(run, root, train, test, run / "report.html")
    return figures
