"""``weaksam data``: look at a folder of images and tags before anything is learned from it, and describe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weaksam_cli import completion
from weaksam_cli.commands import HelpCommand, HelpGroup
from weaksam_cli.options import Options, with_options
from weaksam_cli.state import OPTIONS, data_root

if TYPE_CHECKING:
    from stages.core.datasets.checking.report import DatasetCheck, SplitCheck

SHOWN = 5

DatasetArgument = Annotated[
    str,
    typer.Argument(
        help="Folder of the data set, or its name in the data folder.", autocompletion=completion.datasets
    ),
]


def data_app() -> typer.Typer:
    """The commands below ``weaksam data``."""
    app = typer.Typer(
        cls=HelpGroup, no_args_is_help=True, help="Look at a folder of images and tags, and describe it."
    )
    app.command("check", cls=HelpCommand)(check)
    app.command("init", cls=HelpCommand)(init)
    return app


@with_options("classes", "data", "as_json", panel=None)
def check(
    options: Options,
    dataset: DatasetArgument,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not read the images: no damaged ones, no duplicates.")
    ] = False,
) -> None:
    """Say what a folder is, what its tags can teach and what is wrong; exit 3 if no stage could start."""
    from stages.core.datasets.checking.report import check_dataset
    from stages.core.errors import InputError
    from stages.core.runtime.reporting import configure_logging, progress_reporter
    from stages.core.spec import Work

    name, root = dataset_and_root(dataset, data_root(options.data))
    shown = progress_reporter(configure_logging(OPTIONS.verbosity), enabled=OPTIONS.progress)
    found = check_dataset(
        name,
        root,
        read_images=not fast,
        classes=class_names(options.classes),
        progress=lambda places, total, label: shown(places, Work(label, total)),
    )
    if options.as_json:
        typer.echo(json.dumps(found.as_json()))
    else:
        _print(found, root)
    if found.problems:
        raise InputError(
            f"{len(found.problems)} problem(s) found", where=found.root, hint="see the lines above"
        )


@with_options("classes", "data", "seed", "overwrite", "as_json", panel=None)
def init(
    options: Options,
    dataset: DatasetArgument,
    val: Annotated[
        str,
        typer.Option("--val", metavar="PERCENT", help="Hold out this part of the train images as split val."),
    ] = "0%",
) -> None:
    """Write what is recognised in a folder into its dataset.yaml, which then has the last word."""
    from stages.core.datasets.catalog import find_dataset
    from stages.core.datasets.checking.declaring import declare_dataset

    name, root = dataset_and_root(dataset, data_root(options.data))
    path = declare_dataset(
        name,
        root,
        val_fraction=fraction(val, "--val"),
        classes=class_names(options.classes),
        seed=options.seed,
        overwrite=options.overwrite,
    )
    declared = find_dataset(name, root)
    splits = [f"{name}_{subset}" for subset in declared.subsets] if declared else []
    if options.as_json:
        typer.echo(json.dumps({"path": str(path), "splits": splits}))
    else:
        typer.echo(f"{path}: {', '.join(splits)}")


def dataset_and_root(given: str, root: Path) -> tuple[str, Path]:
    """Name of a data set and its data folder, from a path or from a name in the data folder."""
    path = Path(given).expanduser()
    if "/" not in given and "\\" not in given and given not in (".", "..") and not path.is_dir():
        return given, root
    absolute = path.absolute()
    resolved = absolute.resolve() if path.name in ("", ".", "..") else absolute
    return resolved.name, resolved.parent


def class_names(text: str) -> tuple[str, ...]:
    """Names of classes from ``dog,cat``."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def fraction(text: str, flag: str) -> float:
    """A percentage such as ``20%``, or a number such as ``0.2``.

    Raises:
        UsageError: neither, or not in [0, 1).
    """
    from stages.core.errors import UsageError

    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise UsageError(f"'{text}' is no percentage below 100%", where=flag, hint="write 20%")
    return value


def _print(found: DatasetCheck, root: Path) -> None:
    """The page of a check."""
    if found.layout:
        typer.echo(f"{found.name}: layout {found.layout}, {len(found.classes)} classes, {found.root}")
    for split in found.splits:
        _print_split(split)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}")
    for problem in found.problems:
        typer.echo(f"problem: {problem}")
    if not found.problems:
        typer.echo(f"ready: weaksam run {found.root if found.root == root / found.name else found.name}")


def _print_split(split: SplitCheck) -> None:
    if split.error:
        typer.echo(f"  {split.name}: cannot be opened")
        return
    typer.echo(f"  {split.name}: {split.role}, {split.images} images, fingerprint {split.fingerprint[:12]}")
    if split.tags is not None:
        rows = [(name, count, split.tags.alone[name]) for name, count in split.tags.shown.items()]
        for name, count, alone in sorted(rows, key=lambda row: -row[1]):
            typer.echo(f"    {name}: {count} images, {alone} where it stands alone")
        if split.tags.negatives:
            typer.echo(f"    negatives (none of the classes): {split.tags.negatives} images")
    for note in split.notes:
        typer.echo(f"    note: {note}")
    for warning in split.warnings:
        typer.echo(f"    warning: {warning}")
    shown: list[Any] = list(split.left_out.items())
    if shown:
        typer.echo(f"    left out: {len(shown)} images")
        for image_id, reason in shown[:SHOWN]:
            typer.echo(f"      {image_id}: {reason}")
        if len(shown) > SHOWN:
            typer.echo(f"      and {len(shown) - SHOWN} more (all with --json)")
