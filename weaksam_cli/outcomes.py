"""What a stage command says when it is done: what was made, how long it took, and the command that comes next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from stages.core.formatting import format_duration, format_number
from stages.core.registry import chain_specs, stage_spec
from weaksam_cli.options import Options

if TYPE_CHECKING:
    from stages.core.artifacts.manifest import Manifest
    from stages.core.config import StageConfig
    from stages.core.runtime.execute import Outcome
    from stages.core.spec import OutputSpec, Role


def print_outcome(stage: str, outcome: Outcome, config: StageConfig, options: Options, role: Role) -> None:
    """Print how a run of a stage ended, as text or as one line of JSON.

    Args:
        stage: Name of the stage.
        outcome: How it ended.
        config: The settings it ran with.
        options: What was asked for.
        role: Role of the split.
    """
    following = next_command(stage, role, options, outcome)
    if options.as_json:
        typer.echo(json.dumps(_as_json(stage, outcome, config, following)))
        return
    manifest = outcome.manifest
    took = "" if manifest is None else f" in {_took(manifest)}"
    typer.echo(f"{stage}: {outcome.status}, {outcome.plan.images} images{took} -> {outcome.out}")
    for note in outcome.plan.notes:
        typer.echo(f"  {note}")
    if manifest is not None:
        typer.echo(f"  made: {', '.join(manifest.outputs)}")
        typer.echo("  " + ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in manifest.counts.items()))
    if following:
        typer.echo(f"  next: {following}")


def next_command(stage: str, role: Role, options: Options, outcome: Outcome) -> str:
    """Return the command that goes on from here: the next stage that reads what this one wrote, else its evaluation.

    Empty where nothing was finished, and where the folder is not the run's, in which no stage would look.
    """
    if outcome.manifest is None or options.out is not None:
        return ""
    readers = [
        spec.name
        for spec in chain_specs()
        for needed in spec.inputs
        if needed.producer == stage and needed.split == "own" and role in needed.roles and spec.name != stage
    ]
    if readers:
        words = ["weaksam", readers[0], "--split", options.split, *_same("run", "recipe", "data", of=options)]
    else:
        artifact = outcome.out / _measured(stage, role).file_name
        words = ["weaksam", "evaluate", str(artifact), "--split", options.split, *_same("data", of=options)]
    return shlex.join(words)


def _measured(stage: str, role: Role) -> OutputSpec:
    """Return the last artifact of a stage that can be evaluated."""
    return [
        output
        for output in stage_spec(stage).outputs
        if role in output.roles and output.kind not in ("weights", "detector")
    ][-1]


def _same(*names: str, of: Options) -> list[str]:
    """Return flags of options that were given, for a command that follows this one."""
    given = {name: getattr(of, name) for name in names}
    return [
        word for name, value in given.items() if value is not None for word in (f"--{name}", _shown(value))
    ]


def _shown(value: str | Path) -> str:
    return value.as_posix() if isinstance(value, Path) else value


def _took(manifest: Manifest) -> str:
    return f"{format_duration(manifest.wall_seconds)} ({format_number(manifest.images_per_second)} images/s)"


def _as_json(stage: str, outcome: Outcome, config: StageConfig, following: str) -> dict[str, Any]:
    manifest = outcome.manifest
    return {
        "stage": stage,
        "status": outcome.status,
        "out": str(outcome.out),
        "images": outcome.plan.images,
        "counts": {} if manifest is None else dict(manifest.counts),
        "wall_seconds": None if manifest is None else manifest.wall_seconds,
        "next": following or None,
        "config": json.loads(config.model_dump_json()),
    }
