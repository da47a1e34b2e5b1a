"""``weaksam``: one subcommand per stage and a few tools; errors become exit codes here and nowhere else.

Nothing heavy is imported before a command runs: ``weaksam --help`` builds the seven stage commands
without their settings, and only the one on the command line imports its settings class.
"""

from __future__ import annotations

import itertools
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.core.registry import CHAIN, chain_specs
from weaksam_cli import tools
from weaksam_cli.commands import HelpCommand, HelpGroup
from weaksam_cli.completion import words_to_complete
from weaksam_cli.data_sets import data_app
from weaksam_cli.recipes import recipes_app
from weaksam_cli.stage_command import stage_command
from weaksam_cli.state import OPTIONS
from weaksam_cli.weights import weights_app

EPILOG = (
    "Exit codes: 0 done, 1 bug, 2 usage, 3 input, 4 output exists, 5 environment, "
    "6 too many failures, 7 expectation not met, 8 training diverged, 75 preempted, 130 interrupted."
)


STOPPED = (75, 130)
"""Exit codes of a run that was asked to stop."""


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
        bool, typer.Option("-V", "--version", callback=_version, is_eager=True, help="Show the version.")
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
        cls=HelpGroup,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog=EPILOG,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_global_options)
    for spec in chain_specs():
        function = stage_command(spec.name) if spec.name in detailed else _placeholder
        app.command(spec.name, cls=HelpCommand, help=spec.summary, rich_help_panel="Stages, in order")(
            function
        )
    for name, function in tools.COMMANDS.items():
        app.command(name, cls=HelpCommand, rich_help_panel="Tools", hidden=name in tools.HIDDEN)(function)
    app.add_typer(data_app(), name="data", rich_help_panel="Tools")
    app.add_typer(recipes_app(), name="recipes", rich_help_panel="Tools")
    app.add_typer(weights_app(), name="weights", rich_help_panel="Tools")
    return app


def _placeholder() -> None:
    raise AssertionError("this stage's command was not built")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run, and turn errors into messages on stderr and documented exit codes."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    from stages.core.runtime.interrupts import watch_signals

    watch_signals()
    app = build_app([word for word in [*given, *words_to_complete()] if word in CHAIN])
    try:
        result = app(args=given, prog_name="weaksam", standalone_mode=False)
    except KeyboardInterrupt:
        _fail("stopped by Ctrl-C", 130)
    except SystemExit:
        raise
    except Exception as error:
        _report(error, given)
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


def _report(error: Exception, given: Sequence[str]) -> None:
    from stages.core.errors import WeakSamError
    from stages.core.faults import known_fault

    if OPTIONS.debug:
        traceback.print_exc()
    if isinstance(error, WeakSamError):
        _fail(str(error), error.exit_code)
    if hasattr(error, "exit_code") and hasattr(error, "format_message"):  # Click's own usage errors
        if not error.format_message():
            sys.exit(int(error.exit_code))  # help was asked for by giving no argument, and has been shown
        _fail(_usage_message(error, given), int(error.exit_code))
    fault = known_fault(error)
    if fault is not None:
        _fail(str(fault), fault.exit_code)
    where = traceback.extract_tb(error.__traceback__)[-1]
    _fail(
        f"a bug in weaksam: {type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})\n"
        "  hint: `weaksam --debug ...` shows the traceback; please report it",
        1,
    )


def _usage_message(error: Any, given: Sequence[str]) -> str:
    """What is wrong with the command line, in our words; the new name of a renamed setting; where to look."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    message, flag = str(error.format_message()), getattr(error, "option_name", None)
    if context is None:
        return message
    if message.startswith("Invalid value") and parameter is not None:
        message = _wrong_value(parameter, given)
    elif flag and context.info_name in CHAIN:
        from stages.core.config.building import renamed_to

        if new := renamed_to(context.info_name, flag.removeprefix("--").replace("-", "_").split("=")[0]):
            message = f"'{flag}': {new}"
    return f"{message}\n  hint: `{context.command_path} --help` lists the options"


def _wrong_value(parameter: Any, given: Sequence[str]) -> str:
    from weaksam_cli.help_page import argument_name, expected

    name = (
        argument_name(parameter) if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
    )
    words = [word for flag in parameter.opts for word in _values_of(flag, given)]
    got = f", got '{words[-1]}'" if words else ""
    return f"{name}: expected {expected(parameter)}{got}"


def _values_of(flag: str, given: Sequence[str]) -> list[str]:
    """What was typed after a flag, each time it was given."""
    following = [after for word, after in itertools.pairwise(given) if word == flag]
    return following + [word.partition("=")[2] for word in given if word.startswith(f"{flag}=")]


def _fail(message: str, code: int) -> None:
    from stages.core.runtime.interrupts import ignore_signals

    if code in STOPPED:
        ignore_signals()
    # Names of files may hold what the terminal's encoding, or no encoding, has.
    text = f"{_process_name()}error: {message}".encode("utf-8", "backslashreplace").decode()
    typer.echo(
        text.encode(sys.stderr.encoding or "utf-8", "backslashreplace").decode(sys.stderr.encoding), err=True
    )
    sys.exit(code)
