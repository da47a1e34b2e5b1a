"""``weaksam weights``: published weights listed, fetched, checked and found."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weaksam_cli import completion
from weaksam_cli.commands import HelpCommand, HelpGroup
from weaksam_cli.options import Options, with_options
from weaksam_cli.state import OPTIONS

if TYPE_CHECKING:
    from stages.core.weights.table import Weights

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A name of `weaksam weights list`.", autocompletion=completion.weights
    ),
]
LINE_EVERY_SECONDS = 30.0


def weights_app() -> typer.Typer:
    """The group of subcommands."""
    app = typer.Typer(
        cls=HelpGroup,
        no_args_is_help=True,
        help="List, fetch, check and locate published weights.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, function in COMMANDS.items():
        app.command(name, cls=HelpCommand)(function)
    return app


@with_options("as_json", panel=None)
def list_weights(options: Options) -> None:
    """List the weights that can be fetched: size, licence, origin, and whether they are here."""
    from stages.core.weights.cache import cache_folder, cached
    from stages.core.weights.table import weights_table

    rows = []
    for name, entry in weights_table().items():
        found = cached(entry)
        rows.append(
            {
                "name": name,
                "megabytes": None if entry.size is None else round(entry.size / 1e6),
                "licence": entry.licence,
                "from": _origin(entry),
                "source": entry.source,
                "path": None if found is None else str(found),
            }
        )
    if options.as_json:
        typer.echo(json.dumps(rows))
        return
    from rich.table import Table

    from weaksam_cli.tables import stdout_console

    table = Table(caption=f"cache: {cache_folder()}; models of the hub (hf:) are in the hub's own")
    for column in ("name", "MB", "licence", "here", "from"):
        table.add_column(
            column, justify="right" if column == "MB" else "left", overflow="fold", no_wrap=column != "from"
        )
    for row in rows:
        here = "yes" if row["path"] else "-"
        size = "?" if row["megabytes"] is None else str(row["megabytes"])
        # The whole address is in --json; here its host has to do.
        origin = str(row["from"]).replace("hub: ", "hf:").removeprefix("https://").partition("/segment_")[0]
        table.add_row(str(row["name"]), size, str(row["licence"]), here, origin)
    stdout_console().print(table)


def _origin(entry: Weights) -> str:
    if entry.shipped:
        return "the package"
    return entry.url or f"hub: {entry.hub}"


def get(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names of `weaksam weights list`.", autocompletion=completion.weights
        ),
    ],
    no_network: Annotated[
        bool, typer.Option("--offline", help="Only say whether they are here; exit 5 if not.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is here.")] = False,
) -> None:
    """Fetch weights into the cache and check them; goes on where an earlier attempt stopped."""
    from stages.core.weights.download import fetch
    from stages.core.weights.table import find_weights

    entries = [find_weights(name) for name in names]
    for entry in entries:
        with _progress(entry.name) as told:
            found = fetch(entry, no_network=no_network, force=force, progress=told)
        typer.echo(f"{entry.name}: {'fetched' if found.fetched else 'already here'} -> {found.path}")


def verify(
    name: NameArgument,
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", help="A file or folder of your own; without it, the cached weights."),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="PATH, too, must be the published file to the last byte.")
    ] = False,
) -> None:
    """Check that weights are the published ones (in the cache), and that they fit the architecture."""
    from stages.core.errors import EnvironmentFault, SchemaError
    from stages.core.weights.cache import cached_weights
    from stages.core.weights.checks import known_of, published_mismatch
    from stages.core.weights.table import find_weights

    entry = find_weights(name)
    path = cached_weights(name) if checkpoint is None else checkpoint
    if not path.exists():
        raise EnvironmentFault(
            "no such file or folder", where=path, hint=f"check the path, or weaksam weights get {name}"
        )
    strict = checkpoint is None or published
    origin = "its hub snapshot" if entry.hub else ""
    if entry.url and path.is_file():
        problem = published_mismatch(entry, path)
        if problem is not None and strict:
            raise SchemaError(
                f"not the published file of {name}: {problem.what}",
                where=path,
                hint=f"weaksam weights get {name} --force",
            )
        same = f"the published file ({known_of(entry)} agree)"
        origin = same if problem is None else f"not the published file ({problem.what})"
    # After the bytes: this imports torch.
    from stages.core.segmenters.checkpoint_checks import check_architecture

    parameters = check_architecture(entry.kind, path)
    typer.echo(f"{path}: weights of {entry.kind}, {parameters / 1e6:.1f} M parameters")
    if origin and (checkpoint is None or entry.url):
        typer.echo(f"  {origin}")


def path_of(name: NameArgument) -> None:
    """Print where weights are; exit 5 if they are not here."""
    from stages.core.weights.cache import cached_weights

    typer.echo(str(cached_weights(name)))


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_weights,
    "get": get,
    "verify": verify,
    "path": path_of,
}


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show bytes on stderr: a bar on a terminal, a line every 30 s elsewhere."""
    if not OPTIONS.progress:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(name: str) -> Callable[[int, int | None], None]:
    last = time.monotonic()

    def tell(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= LINE_EVERY_SECONDS:
            last = now
            of = "" if total is None else f" of {total / 1e6:.0f}"
            typer.echo(f"{name}: {done / 1e6:.0f}{of} MB", err=True)

    return tell
