"""The whole command surface as text: commands, flags, types, ranges, defaults, variables and exit codes.

``python -m tests.cli_surface`` writes it to ``tests/snapshots/cli.txt``; what changed there is a reviewed decision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from stages.core.config import config_class
from stages.core.config.building import variable
from stages.core.config.model import setting_fields
from stages.core.config.values import format_value, type_words
from stages.core.errors import WeakSamError
from stages.core.registry import CHAIN
from weaksam_cli.help_page import left, limits
from weaksam_cli.main import build_app
from weaksam_cli.setting_flags import notation

SNAPSHOT = Path(__file__).parent / "snapshots" / "cli.txt"


def surface() -> str:
    """The surface as lines, one per flag."""
    app: Any = get_command(build_app(CHAIN))
    lines = [*_command("weaksam", app), "", "exit codes"]
    lines += sorted({f"  {error.exit_code:3d} {error.__name__}" for error in _errors(WeakSamError)})
    return "\n".join(lines) + "\n"


def _command(path: str, command: Any) -> Iterator[str]:
    yield f"{path}{' (hidden)' if command.hidden else ''}"
    own = [p for p in command.params if not p.name.startswith("setting__")]
    yield from (f"  {_parameter(parameter)}" for parameter in own)
    stage = path.removeprefix("weaksam ")
    if stage in CHAIN:
        yield from (f"  {line}" for line in _settings(stage))
    for name, inner in getattr(command, "commands", {}).items():
        yield ""
        yield from _command(f"{path} {name}", inner)


def _parameter(parameter: Any) -> str:
    facts = [left(parameter).plain]
    facts += [fact for fact in (limits(parameter),) if fact]
    facts.append("required" if parameter.required else f"= {format_value(parameter.default) or 'empty'}")
    if parameter.envvar:
        facts.append(f"${parameter.envvar}")
    return "  ".join(facts)


def _settings(stage: str) -> Iterator[str]:
    for name, field in setting_fields(config_class(stage)):
        default = format_value(field.get_default(call_default_factory=True))
        *groups, last = (part.replace("_", "-") for part in name)
        plain = field.annotation is bool
        flag = "--" + ".".join([*groups, f"[no-]{last}" if plain else last])
        written = flag if plain else f"{flag} {notation(field.annotation)}"
        words = type_words(field)
        known = "" if words in ("text", "true or false") else f"  {words}"
        yield f"{written}{known}  = {default or 'empty'}  ${variable(name, stage)}"


def _errors(base: type[WeakSamError]) -> Iterator[type[WeakSamError]]:
    yield base
    for error in base.__subclasses__():
        yield from _errors(error)


if __name__ == "__main__":
    SNAPSHOT.parent.mkdir(exist_ok=True)
    SNAPSHOT.write_text(surface(), encoding="utf-8")
