"""The tools beside the stages: demo, predict, evaluate, report, inspect, doctor, and what Make asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from weaksam_cli.chain import demo, evaluate_and_report
from weaksam_cli.diagnosis import doctor
from weaksam_cli.inspection import inspect_artifact
from weaksam_cli.prediction import predict
from weaksam_cli.state import data_root, run_folder

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder of data sets; default $WEAKSAM_DATA, else ./data.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]


def evaluate(
    artifact: Annotated[
        Path | None, typer.Argument(help="File to measure; without one, the whole run.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split the file was made for.")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            help="cams, prompts, proposals, detections, pgt or segmentations; default from the file.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Measure a run: data set name, e.g. shapes.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run folder; default runs/<dataset>.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take only the first N images in id order.")
    ] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option("--expect", metavar="'AP50>=0.6'", help="Exit 7 unless it holds; may be repeated."),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure an artifact, or a whole run, against the ground truth."""
    from stages.core.errors import UsageError
    from stages.core.evaluation.expect import check_expectations
    from weaksam_cli.tables import print_report_table, print_run_table

    if artifact is None:
        if dataset is None:
            raise UsageError("give an ARTIFACT with --split, or --dataset for a whole run", where="evaluate")
        from stages.core.evaluation.suite import evaluate_run

        train, test = dataset_splits(dataset, data_root(data))
        figures: dict[str, Any] = evaluate_run(run_folder(run, dataset), data_root(data), train, test)
        metrics = figures["metrics"]
        if as_json:
            typer.echo(json.dumps(figures))
        else:
            print_run_table(figures)
    else:
        if split is None:
            raise UsageError(
                "an artifact is measured against a split", where="--split", hint="add --split NAME"
            )
        from stages.core.evaluation.tasks import evaluate as evaluate_artifact

        report = evaluate_artifact(task, artifact, split, data_root(data), limit=limit)
        metrics = report.metrics
        if as_json:
            typer.echo(json.dumps(report.as_json()))
        else:
            print_report_table(report)
    check_expectations(expect or [], metrics)


def report(
    dataset: Annotated[str, typer.Option("--dataset", help="Data set name, e.g. shapes.")],
    run: Annotated[Path | None, typer.Option("--run", help="Run folder; default runs/<dataset>.")] = None,
    data: DataOption = None,
) -> None:
    """Measure a run and write its self-contained report.html."""
    root, folder = data_root(data), run_folder(run, dataset)
    train, test = dataset_splits(dataset, root)
    evaluate_and_report(folder, root, train, test)
    typer.echo(f"report: {folder / 'report.html'}")


def dataset_splits(dataset: str, root: Path) -> tuple[str, str]:
    """Train and test split of a data set as the catalog knows them; test is empty if there is none."""
    from stages.core.datasets.catalog import main_splits

    return main_splits(dataset, root)


def settings(
    run: Annotated[Path, typer.Option("--run")],
    dataset: Annotated[str, typer.Option("--dataset")],
    recipe: Annotated[str | None, typer.Option("--recipe")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c")] = None,
    assignments: Annotated[list[str] | None, typer.Option("--set", "-s")] = None,
    data: DataOption = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
) -> None:
    """Write <run>/settings/<stage>.yaml where it changed and print 'train-split test-split' (for Make)."""
    import yaml

    from stages.core.artifacts.files import write_text
    from stages.core.config import config_class
    from stages.core.registry import CHAIN
    from weaksam_cli.stage_command import resolve_settings

    for stage in CHAIN:
        resolved = resolve_settings(stage, config_class(stage), recipe, config, assignments or [], {})
        content = {stage: json.loads(resolved.model_dump_json()), "seed": seed}
        text = yaml.safe_dump(content, sort_keys=False)
        path = run / "settings" / f"{stage}.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    typer.echo(" ".join(dataset_splits(dataset, data_root(data))))


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "predict": predict,
    "evaluate": evaluate,
    "report": report,
    "inspect": inspect_artifact,
    "doctor": doctor,
    "settings": settings,
}
HIDDEN = ("settings",)
