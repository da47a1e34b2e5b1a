"""``weaksam run`` and ``weaksam demo``: the stages one after the other, then metrics and a report.

The same calls as the stage commands make; Make does the same with one process per stage.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.core.registry import CHAIN, Step, chain_steps, load_stage
from weaksam_cli import completion
from weaksam_cli.data_sets import DatasetArgument, class_names, dataset_and_root
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.stage_command import resolve_settings, stage_request
from weaksam_cli.state import data_root, run_folder

if TYPE_CHECKING:
    from stages.core.viz.image_choice import Order

RECIPES = {"shapes": "shapes", "voc07": "voc07", "voc12": "voc12", "coco14": "coco14", "coco17": "coco17"}
"""Data set -> the recipe made for it; all others take ``offline``."""


@with_options(
    use("run", help="Run folder; default runs/<dataset>."),
    use("recipe", help="Settings of all stages: a path, or one of {recipes}; default by data set."),
    "config",
    use("assignments", metavar="STAGE.KEY=VALUE"),
    "classes",
    "data",
    "limit",
    "device",
    "precision",
    "workers",
    "seed",
    "max_failures",
    "dry_run",
    "as_json",
)
def run(
    options: Options,
    dataset: DatasetArgument,
    until: Annotated[
        str,
        typer.Option(
            "--until", metavar="|".join(CHAIN), help="Last stage to run.", autocompletion=completion.stages
        ),
    ] = CHAIN[-1],
) -> None:
    """From tags to a detector and masks: all stages on a data set, metrics, report.html.

    Goes on where an earlier run stopped; what changed is done again.
    """
    from stages.core.datasets.catalog import main_splits
    from stages.core.datasets.checking.report import check_dataset
    from stages.core.errors import InputError, UsageError, did_you_mean

    if until not in CHAIN:
        raise UsageError(f"there is no stage '{until}'", where="--until", hint=did_you_mean(until, CHAIN))
    name, root = dataset_and_root(dataset, data_root(options.data))
    check = check_dataset(name, root, read_images=False, classes=class_names(options.classes))
    if check.problems:
        raise InputError(check.problems[0], where=check.root, hint=f"weaksam data check {dataset}")
    train, test = main_splits(name, root)
    folder = run_folder(options.run, name)
    recipe = options.recipe or RECIPES.get(name, "offline")
    asked = replace(options, run=folder, data=root, recipe=recipe)
    wanted = CHAIN[: CHAIN.index(until) + 1]
    steps = [step for step in chain_steps() if step.stage in wanted and (test or step.role == "train")]
    run_steps(steps, asked, {"train": train, "test": test}, {"train": options.limit, "test": options.limit})
    if options.dry_run:
        return
    _conclude(folder, root, train, test, as_json=options.as_json)


@with_options(
    use("run", default=Path("runs/demo"), env=None, help="Run folder."),
    use("recipe", default="demo", env=None),
    "config",
    use("assignments", metavar="STAGE.KEY=VALUE"),
    "classes",
    "data",
    "device",
    "precision",
    "deterministic",
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
    from stages.core.runtime.processes import is_main

    assert options.run is not None
    root, start = data_root(options.data), time.monotonic()
    splits = {"train": f"{dataset}_train", "test": f"{dataset}_test"}
    steps = list(chain_steps())
    run_steps(steps, options, splits, {"train": train_images, "test": test_images})
    seconds = time.monotonic() - start
    if not is_main():
        return
    evaluate_and_report(options.run, root, splits["train"], splits["test"])
    typer.echo(f"{len(steps)} steps in {seconds / 60:.1f} min; report: {options.run / 'report.html'}")


def run_steps(
    steps: list[Step], options: Options, splits: Mapping[str, str], limits: Mapping[str, int | None]
) -> None:
    """Run steps of the chain; those that are done are left as they are, those that changed are done again.

    A dry run prints the steps and tries the first one alone: the others need what it writes.
    """
    from stages.core.config import config_class
    from stages.core.runtime.execute import execute

    configs = {
        step.stage: resolve_settings(
            step.stage, config_class(step.stage), options.recipe, options.config, options.assignments, {}
        )
        for step in steps
    }
    for number, step in enumerate(steps, 1):
        typer.echo(f"[{number}/{len(steps)}] {step.stage} {splits[step.role]}", err=True)
        if options.dry_run and number > 1:
            continue
        asked = replace(
            options, split=splits[step.role], limit=limits[step.role], resume=True, overwrite=True
        )
        execute(load_stage(step.stage), configs[step.stage], stage_request(asked, {}))


def _conclude(run: Path, root: Path, train: str, test: str, *, as_json: bool) -> None:
    """Measure and report; three lines: the metric, the report, the next step."""
    import json

    from stages.core.evaluation.suite import evaluate_run
    from stages.core.runtime.processes import is_main
    from stages.core.viz.report import write_report
    from weaksam_cli.tables import print_run_table

    if not is_main():
        return
    figures = evaluate_run(run, root, train, test)
    report = write_report(run, root, train, test, run / "report.html")
    if as_json:
        typer.echo(json.dumps(figures | {"report": str(report)}))
        return
    print_run_table(figures)
    typer.echo(_headline(figures, test or train))
    typer.echo(f"report: {report}")
    typer.echo(f"next: weaksam predict PHOTOS --run {run}")


def _headline(figures: dict[str, Any], split: str) -> str:
    """The metric of the last detector that was measured on a split, or why there is none."""
    for stage in reversed(CHAIN):
        for name in ("ap50", "mask_ap50"):
            value = figures["metrics"].get(f"{stage}.{split}.{name}")
            if value is not None:
                return f"{name.upper().replace('_', ' ')} {value:.3f} of {stage} on {split}"
    return f"no metric: {split} has image tags only; look at the pictures of the report"


def evaluate_and_report(
    run: Path,
    root: Path,
    train: str,
    test: str,
    *,
    images: int | None = None,
    order: Order = "spread",
    other: Path | None = None,
) -> dict[str, Any]:
    """Measure everything in a run folder, print one table, write ``report.html``.

    Args:
        run: Run folder.
        root: Folder of data sets.
        train, test: Splits; test may be empty.
        images, order: See `stages.core.viz.report.write_report`.
        other: Run folder to compare with; measured, too.
    """
    from stages.core.evaluation.suite import evaluate_run
    from stages.core.viz.report import write_report
    from weaksam_cli.tables import print_run_table

    figures = evaluate_run(run, root, train, test)
    print_run_table(figures)
    if other is not None:
        evaluate_run(other, root, train, test)
    write_report(run, root, train, test, run / "report.html", images=images, order=order, other=other)
    return figures
