"""The look of ``--help``: what matters first, one notation of types, ranges and defaults, examples last.

| shown | meaning |
|---|---|
| INTEGER, NUMBER, TEXT, PATH | a value of that type |
| CHOICE | one of the words that the description lists |
| INTEGER,... | a list, ``480,576`` |
| --[no-]masks | a flag and its opposite; a flag takes no value |
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from weaksam_cli.examples import EXAMPLES
from weaksam_cli.setting_flags import CONDITION

MAX_FLAG_WIDTH = 42
TYPES = {
    "int": "INTEGER",
    "float": "NUMBER",
    "str": "TEXT",
    "path": "PATH",
    "file": "PATH",
    "directory": "PATH",
}
GENERAL = "Options"


def print_page(command: Any, ctx: Any) -> None:
    """Print the help of a command: usage, what it does, arguments and options in panels, examples."""
    console = Console(highlight=False)
    parts: list[Any] = [Text.assemble(("Usage: ", "bold yellow"), (usage(command, ctx), "bold")), Text()]
    for paragraph in (command.help or "").strip().split("\n\n"):
        parts += [Text(" ".join(paragraph.split())), Text()]
    console.print(Padding(Group(*parts), (1, 1, 0, 1)))
    panels = panels_of(command, ctx)
    width = flag_width(panels, console.width)
    for title, parameters in panels.items():
        console.print(_panel(title, [(left(p), right(p)) for p in parameters], width))
    for title, commands in commands_of(command, ctx).items():
        rows = [(Text(name, "bold cyan"), Text(summary)) for name, summary in commands]
        console.print(_panel(title, rows, max(len(name) for name, _ in commands)))
    if examples := EXAMPLES.get(command_path(ctx)):
        console.print(_examples(examples))
    if command.epilog:
        console.print(Padding(Text(command.epilog, "dim"), (0, 1, 1, 1)))


def usage(command: Any, ctx: Any) -> str:
    """The usage line: required options by name, then arguments."""
    words = [ctx.command_path]
    shown = [p for p in command.get_params(ctx) if not getattr(p, "hidden", False)]
    words += [f"{p.opts[0]} {kind(p)}" for p in shown if p.param_type_name != "argument" and p.required]
    words.append("[OPTIONS]")
    for parameter in shown:
        if parameter.param_type_name == "argument":
            name = argument_name(parameter)
            words.append(name if parameter.required else f"[{name}]")
    if hasattr(command, "commands"):
        words.append("COMMAND [ARGS]...")
    return " ".join(words)


def command_path(ctx: Any) -> str:
    """The words that name a command, without the program's."""
    return " ".join(ctx.command_path.split()[1:]) if ctx.parent else ""


def panels_of(command: Any, ctx: Any) -> dict[str, list[Any]]:
    """Panel title -> parameters in order; panels come in the order in which their first parameter was declared."""
    panels: dict[str, list[Any]] = {"Arguments": [], GENERAL: []}
    for parameter in command.get_params(ctx):
        if getattr(parameter, "hidden", False):
            continue
        default = "Arguments" if parameter.param_type_name == "argument" else GENERAL
        panels.setdefault(parameter.rich_help_panel or default, []).append(parameter)
    return {title: parameters for title, parameters in panels.items() if parameters}


def commands_of(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """Panel title -> names and summaries of the commands of a group."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            summary = (inner.help or "").strip().split("\n\n")[0]
            title = getattr(inner, "rich_help_panel", None) or "Commands"
            panels.setdefault(title, []).append((name, " ".join(summary.split())))
    return panels


def flag_width(panels: dict[str, list[Any]], columns: int) -> int:
    """Width of the column of flags: the widest, as long as the descriptions keep more than half of the page."""
    widest = max((left(p).cell_len for parameters in panels.values() for p in parameters), default=0)
    return min(widest, MAX_FLAG_WIDTH, columns * 9 // 20)


def left(parameter: Any) -> Text:
    """Flags and type of a parameter, or the name of an argument."""
    if parameter.param_type_name == "argument":
        return Text(argument_name(parameter), "bold cyan")
    shorts = sorted(name for name in parameter.opts if not name.startswith("--"))
    longs = [name for name in parameter.opts if name.startswith("--")]
    if parameter.secondary_opts:
        longs = [_with_opposite(longs[0], parameter.secondary_opts[0])]
    text = Text(", ".join([*shorts, *longs]), "bold cyan")
    if takes_value(parameter):
        text.append(f" {kind(parameter)}", "bold yellow")
    return text


def right(parameter: Any) -> Text:
    """Description of a parameter, then what can be given, the variable and the default."""
    text = Text(_filled(parameter.help or ""))
    facts = [fact for fact in (limits(parameter), _variable(parameter), _default(parameter)) if fact]
    if parameter.required:
        facts.append("required")
    if facts:
        text.append(f" ({'; '.join(facts)})", "dim")
    return text


def kind(parameter: Any) -> str:
    """Type of a parameter's value in our notation."""
    if parameter.metavar:
        return str(parameter.metavar)
    if _choices(parameter):
        return "CHOICE"
    described = parameter.type_descriptor
    name = described.path_type if described.is_path else parameter.bare_type()
    return TYPES.get(name.removeprefix("list[").removesuffix("]").lower(), "VALUE")


def takes_value(parameter: Any) -> bool:
    """Whether an option is followed by a value."""
    return not parameter.is_flag


def argument_name(parameter: Any) -> str:
    """Name of an argument as shown."""
    name = str(parameter.metavar or parameter.name.upper()).strip("[]{}")
    return name + "..." if parameter.nargs == -1 and not name.endswith("...") else name


def limits(parameter: Any) -> str:
    """Choices or range of a value: ``auto, fp32 or bf16``, ``[0, 1]``, ``>= 1``."""
    if words := _choices(parameter):
        return f"{', '.join(words[:-1])} or {words[-1]}"
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    if low is not None and high is not None:
        return f"[{_number(low)}, {_number(high)}]"
    if low is not None:
        return f">= {_number(low)}"
    return f"<= {_number(high)}" if high is not None else ""


def expected(parameter: Any) -> str:
    """What a parameter takes, for messages: ``an integer >= 0``, ``auto, fp32, bf16 or fp16``."""
    if _choices(parameter):
        return limits(parameter)
    words = {"INTEGER": "an integer", "NUMBER": "a number", "PATH": "a path", "TEXT": "text"}
    range_of = limits(parameter)
    where = f"in {range_of}" if range_of.startswith("[") else range_of
    return f"{words.get(kind(parameter), kind(parameter))} {where}".rstrip()


def _choices(parameter: Any) -> tuple[str, ...]:
    return tuple(str(word) for word in parameter.type_descriptor.choices or ())


def _variable(parameter: Any) -> str:
    return f"env: {parameter.envvar}" if parameter.envvar else ""


def _default(parameter: Any) -> str:
    value = parameter.default
    if (
        not parameter.show_default
        or value is None
        or value is False
        or value in ("", [])
        or parameter.required
    ):
        return ""
    if isinstance(value, bool):
        return f"default: {'on' if value else 'off'}"
    return f"default: {_number(value) if isinstance(value, float) else value}"


def _filled(text: str) -> str:
    if "{recipes}" in text:
        from stages.core.config import recipe_names  # not for a page that does not name them

        return text.replace("{recipes}", ", ".join(recipe_names()))
    return text


def _with_opposite(flag: str, opposite: str) -> str:
    """``--tta`` and ``--no-tta`` as ``--[no-]tta``; of a group, ``--detr.[no-]denoising``."""
    group, dot, name = flag.removeprefix("--").rpartition(".")
    together = f"--{group}{dot}no-{name}"
    return f"--{group}{dot}[no-]{name}" if opposite == together else f"{flag}/{opposite}"


def _panel(title: str, rows: Iterable[tuple[Text, Text]], width: int) -> Panel:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(width=width, overflow="fold")
    table.add_column(ratio=1)
    for flags, text in rows:
        table.add_row(flags, text)
    title, _, condition = title.partition(CONDITION)  # below, because a long title would be cut
    return Panel(
        table,
        title=title,
        title_align="left",
        subtitle=condition or None,
        subtitle_align="left",
        border_style="dim",
    )


def _examples(examples: Iterable[tuple[str, str]]) -> Panel:
    table = Table.grid(padding=(0, 0))
    for line, remark in examples:
        table.add_row(Text(f"# {remark}", "dim"))
        table.add_row(Text(line, "bold"))
    return Panel(table, title="Examples", title_align="left", border_style="dim")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)
