"""The tools beside the stages: run, predict, evaluate, export, import, report, status, doctor, and what Make asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from weaksam_cli import completion
from weaksam_cli.chain import demo, evaluate_and_report, run
from weaksam_cli.conversion import convert
from weaksam_cli.curves import tensorboard
from weaksam_cli.data_sets import class_names
from weaksam_cli.diagnosis import doctor
from weaksam_cli.exporting import export, submissions_of
from weaksam_cli.importing import import_file
from weaksam_cli.inspection import inspect_artifact
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.prediction import predict
from weaksam_cli.ranking import rank
from weaksam_cli.run_folders import show, status
from weaksam_cli.state import data_root, run_folder

DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Measure a run: data set name, e.g. shapes.",
        autocompletion=completion.datasets,
    ),
]

TrainSplitOption = Annotated[
    str | None,
    typer.Option(
        "--train-split",
        help="Train split of the run; default the data set's.",
        autocompletion=completion.splits,
    ),
]
TestSplitOption = Annotated[
    str | None,
    typer.Option(
        "--test-split",
        help="Test split of the run; default the data set's.",
        autocompletion=completion.splits,
    ),
]


@with_options(
    use("split", default="", env=None, help="Split that the artifact was made for."),
    use("run", help="Run folder; default runs/<dataset>."),
    "classes",
    "limit",
    "data",
    "as_json",
    panel=None,
)
def evaluate(
    options: Options,
    artifact: Annotated[
        Path | None, typer.Argument(help="File to measure; without one, the whole run.")
    ] = None,
    task: Annotated[
        Literal["cams", "prompts", "proposals", "detections", "pgt", "segmentations"] | None,
        typer.Option("--task", help="What the file holds; default from the file."),
    ] = None,
    dataset: DatasetOption = None,
    train_split: TrainSplitOption = None,
    test_split: TestSplitOption = None,
    expect: Annotated[
        list[str] | None,
        typer.Option("--expect", metavar="'AP50>=0.6'", help="Exit 7 unless it holds; may be repeated."),
    ] = None,
) -> None:
    """Measure an artifact, or a whole run, against the ground truth."""
    from stages.core.errors import UsageError
    from stages.core.evaluation.expect import check_expectations
    from weaksam_cli.tables import print_report_table, print_run_table

    if artifact is None:
        if dataset is None:
            raise UsageError("give an ARTIFACT with --split, or --dataset for a whole run", where="evaluate")
        from stages.core.evaluation.suite import evaluate_run

        train, test = dataset_splits(dataset, data_root(options.data), train_split, test_split)
        figures: dict[str, Any] = evaluate_run(
            run_folder(options.run, dataset), data_root(options.data), train, test
        )
        metrics = figures["metrics"]
        if options.as_json:
            typer.echo(json.dumps(figures))
        else:
            print_run_table(figures)
        folder = run_folder(options.run, dataset)
        for line in submissions_of(figures, folder, data_root(options.data)):
            typer.echo(line, err=True)
    else:
        if not options.split:
            raise UsageError(
                "an artifact is measured against a split", where="--split", hint="add --split NAME"
            )
        from stages.core.evaluation.tasks import evaluate as evaluate_artifact

        report = evaluate_artifact(
            task,
            artifact,
            options.split,
            data_root(options.data),
            limit=options.limit,
            classes=class_names(options.classes),
        )
        metrics = report.metrics
        if options.as_json:
            typer.echo(json.dumps(report.as_json()))
        else:
            print_report_table(report)
    check_expectations(expect or [], metrics)


@with_options(use("run", help="Run folder; default runs/<dataset>."), "data", panel=None)
def report(
    options: Options,
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN OTHER",
            help="Run folder, and one to compare it with; both may be left out.",
            autocompletion=completion.runs,
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--dataset",
            help="Data set name, e.g. shapes; default that of RUN.",
            autocompletion=completion.datasets,
        ),
    ] = None,
    train_split: TrainSplitOption = None,
    test_split: TestSplitOption = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Images of each split to show; default a few.")
    ] = None,
    order: Annotated[
        Literal["spread", "id", "worst"],
        typer.Option("--order", help="Which images: spread evenly, the first by id, or the worst first."),
    ] = "spread",
) -> None:
    """Measure a run and write its self-contained report.html; two runs are compared."""
    from stages.core.errors import UsageError

    given = list(runs or ())
    if len(given) > 2:
        raise UsageError("a report is of one run, or of two", where="report", hint="give RUN, or RUN OTHER")
    if dataset is None and not given and options.run is None:
        raise UsageError("which run?", where="report", hint="give a RUN folder, or --dataset NAME")
    root = data_root(options.data)
    folder = given[0] if given else run_folder(options.run, dataset or "")
    name = dataset or dataset_of(folder)
    train, test = dataset_splits(name, root, train_split, test_split)
    other = given[1] if len(given) > 1 else None
    evaluate_and_report(folder, root, train, test, images=images, order=order, other=other)
    typer.echo(f"report: {folder / 'report.html'}")


def dataset_of(run: Path) -> str:
    """Name of the data set of a run folder, from the splits of its stages.

    Raises:
        MissingInputError: no stage has finished there.
    """
    from stages.core.artifacts.manifest import MANIFEST_NAME
    from stages.core.errors import MissingInputError
    from stages.core.registry import CHAIN

    splits = [
        found.parent.name for stage in CHAIN for found in sorted((run / stage).glob(f"*/{MANIFEST_NAME}"))
    ]
    if not splits:
        raise MissingInputError("no stage has finished in this folder", where=run, hint="run a stage first")
    return splits[0].rpartition("_")[0]


def dataset_splits(
    dataset: str, root: Path, train: str | None = None, test: str | None = None
) -> tuple[str, str]:
    """Train and test split of a data set as given, else as the catalog knows them; test is empty if there is none."""
    from stages.core.datasets.catalog import main_splits

    known = main_splits(dataset, root)
    return train or known[0], test or known[1]


@with_options("run", "recipe", "config", "assignments", "data", "seed", panel=None)
def settings(
    options: Options, dataset: Annotated[str, typer.Option("--dataset", help="Data set name.")]
) -> None:
    """Write <run>/settings/<stage>.yaml where it changed and print 'train-split test-split' (for Make).

    Beside the settings it holds the content hashes of the weights they name, so that Make notices other weights.
    """
    import yaml

    from stages.core.artifacts.files import content_sha256, write_text
    from stages.core.config import config_class
    from stages.core.registry import CHAIN
    from weaksam_cli.stage_command import resolve_settings

    folder = run_folder(options.run, dataset) / "settings"
    for stage in CHAIN:
        resolved = resolve_settings(
            stage, config_class(stage), options.recipe, options.config, options.assignments, {}
        )
        content: dict[str, Any] = {stage: json.loads(resolved.model_dump_json()), "seed": options.seed}
        weights = resolved.weight_files(trains=True)
        if weights:
            content["weights_sha256"] = {
                n: content_sha256(path) for n, path in weights.items() if path.exists()
            }
        text = yaml.safe_dump(content, sort_keys=False)
        path = folder / f"{stage}.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    typer.echo(" ".join(dataset_splits(dataset, data_root(options.data))))


COMMANDS: dict[str, Callable[..., None]] = {
    "run": run,
    "demo": demo,
    "predict": predict,
    "convert": convert,
    "evaluate": evaluate,
    "export": export,
    "import": import_file,
    "report": report,
    "tensorboard": tensorboard,
    "inspect": inspect_artifact,
    "rank": rank,
    "show": show,
    "status": status,
    "doctor": doctor,
    "settings": settings,
}
HIDDEN = ("settings",)
