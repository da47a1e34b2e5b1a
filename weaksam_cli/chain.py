"""``weaksam demo``: the seven stages one after the other, then figures and a report.

The same calls as the stage commands make; Make does the same with one process per stage.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.core.registry import chain_steps, load_stage
from weaksam_cli.stage_command import resolve_settings
from weaksam_cli.state import OPTIONS, data_root


def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder.")] = Path("runs/demo"),
    recipe: Annotated[str, typer.Option("--recipe", help="Settings of all stages.")] = "demo",
    dataset: Annotated[
        str, typer.Option("--dataset", help="Data set with a _train and a _test split.")
    ] = "shapes",
    train_images: Annotated[int, typer.Option("--train-images", min=1, help="Images to learn from.")] = 112,
    test_images: Annotated[int, typer.Option("--test-images", min=1, help="Images to evaluate on.")] = 40,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder of data sets; default $WEAKSAM_DATA, else ./data.")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="STAGE.KEY=VALUE", help="One setting; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes for per-image work.")
    ] = None,
    max_failures: Annotated[
        str, typer.Option("--max-failures", help="Images that may fail: a count or a percentage.")
    ] = "5%",
) -> None:
    """Run all seven stages on the embedded data set, evaluate, and write report.html.

    Goes on where an earlier demo stopped; what changed is done anew.
    """
    from stages.core.config import config_class
    from stages.core.runtime.execute import execute
    from stages.core.runtime.processes import is_main
    from stages.core.runtime.request import Request

    root, start = data_root(data), time.monotonic()
    splits = {"train": f"{dataset}_train", "test": f"{dataset}_test"}
    limits = {"train": train_images, "test": test_images}
    steps = chain_steps()
    for number, step in enumerate(steps, 1):
        config = resolve_settings(step.stage, config_class(step.stage), recipe, None, assignments or [], {})
        typer.echo(f"[{number}/{len(steps)}] {step.stage} {splits[step.role]}", err=True)
        execute(
            load_stage(step.stage),
            config,
            Request(
                split=splits[step.role],
                run=run,
                data=root,
                limit=limits[step.role],
                resume=True,
                overwrite=True,
                device=device,
                precision="auto",
                seed=seed,
                workers=workers,
                verbosity=OPTIONS.verbosity,
                show_progress=OPTIONS.progress,
                max_failures=max_failures,
            ),
        )
    seconds = time.monotonic() - start
    if not is_main():
        return
    evaluate_and_report(run, root, splits["train"], splits["test"])
    typer.echo(f"{len(steps)} steps in {seconds / 60:.1f} min; report: {run / 'report.html'}")


def evaluate_and_report(run: Path, root: Path, train: str, test: str) -> dict[str, Any]:
    """Measure everything in a run folder, print one table, write ``report.html``."""
    from stages.core.evaluation.suite import evaluate_run
    from stages.core.viz.report import write_report
    from weaksam_cli.tables import print_run_table

    figures = evaluate_run(run, root, train, test)
    print_run_table(figures)
    write_report(run, root, train, test, run / "report.html")
    return figures
