"""``weaksam``: one subcommand per stage and a few tools; errors become exit codes here and nowhere else.

Nothing heavy is imported before a command runs: ``weaksam --help`` builds the seven stage commands
without their settings, and only the one on the command line imports its settings class.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stages.core.registry import CHAIN, chain_specs
from weaksam_cli import tools
from weaksam_cli.stage_command import stage_command
from weaksam_cli.state import OPTIONS
from weaksam_cli.weights import weights_app

EPILOG = (
    "Exit codes: 0 done, 1 bug, 2 usage, 3 input, 4 output exists, 5 environment, "
    "6 too many failures, 7 expectation not met, 8 training diverged, 75 preempted, 130 interrupted."
)


def _version(value: bool) -> None:
    if value:
        from stages.core.runtime.environment import package_version

        typer.echo(f"weaksam {package_version()}")
        raise typer.Exit


def _global_options(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress display.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Image-level tags in; object detectors and instance segmenters out."""
    OPTIONS.verbosity = 1 if verbose else -1 if quiet else 0
    OPTIONS.debug = debug
    OPTIONS.progress = not (no_progress or quiet)


def build_app(detailed: Sequence[str]) -> typer.Typer:
    """The command-line application.

    Args:
        detailed: Stages whose flags are needed; the others show their summary only.
    """
    app = typer.Typer(
        name="weaksam",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        epilog=EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for spec in chain_specs():
        function = stage_command(spec.name) if spec.name in detailed else _placeholder
        app.command(spec.name, help=spec.summary, rich_help_panel="Stages, in order")(function)
    for name, function in tools.COMMANDS.items():
        app.command(name, rich_help_panel="Tools", hidden=name in tools.HIDDEN)(function)
    app.add_typer(weights_app(), name="weights", rich_help_panel="Tools")
    return app


def _placeholder() -> None:
    raise AssertionError("this stage's command was not built")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run, and turn errors into messages on stderr and documented exit codes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    app = build_app([word for word in given if word in CHAIN])
    try:
        result = app(args=given, standalone_mode=False)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C", 130)
    except SystemExit:
        raise
    except Exception as error:
        _report(error)
    else:
        _leave_processes()
        sys.exit(result if isinstance(result, int) else 0)


def _process_name() -> str:
    """Which process of a launch this is, before its messages; nothing for the main one."""
    if "stages.core.runtime.processes" not in sys.modules:
        return ""
    from stages.core.runtime.processes import rank

    return f"[process {rank()}] " if rank() else ""


def _leave_processes() -> None:
    """Part from the other processes of a launch, if this one had joined any."""
    if "stages.core.runtime.processes" in sys.modules:
        from stages.core.runtime.processes import leave

        leave()


def _report(error: Exception) -> None:
    from stages.core.errors import WeakSamError

    if OPTIONS.debug:
        traceback.print_exc()
    if isinstance(error, WeakSamError):
        _fail(str(error), error.exit_code)
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # Click's own usage errors
        if not error.format_message():
            sys.exit(int(error.exit_code))  # help was asked for by giving no argument, and has been shown
        _fail(error.format_message(), int(error.exit_code))
    if isinstance(error, MemoryError):
        _fail("out of memory\n  hint: fewer --workers, a smaller batch or image size", 5)
    where = traceback.extract_tb(error.__traceback__)[-1]
    _fail(
        f"a bug in weaksam: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})\n"
        "  hint: `weaksam --debug ...` shows the traceback; please report it",
        1,
    )


def _fail(message: str, code: int) -> None:
    typer.echo(f"{_process_name()}error: {message}", err=True)
    sys.exit(code)
