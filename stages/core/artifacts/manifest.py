"""``manifest.json``: written last and atomically, so that its presence means the stage finished.

It records what was made from what: settings, content hashes of inputs and outputs, environment, seed,
counts, failures per image, wall time and peak memory. Make depends on it; the next stage checks it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stages.core.artifacts.files import file_sha256, read_json, write_json
from stages.core.errors import MissingInputError, SchemaError, StaleInputError

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1
RUN_RECORD = "state/run.json"
"""What a run is made with, in its folder until it has finished."""


@dataclass
class InputRecord:
    """One input file as it was when the stage ran: path relative to the run folder, and SHA-256."""

    path: str
    sha256: str


@dataclass
class Manifest:
    """Everything worth knowing about one finished stage."""

    stage: str
    split: str
    config: dict[str, Any]
    seed: int
    version: str
    git: str | None
    command: list[str]
    inputs: dict[str, InputRecord] = field(default_factory=dict)
    split_fingerprint: str = ""
    outputs: dict[str, str] = field(default_factory=dict)  # file name -> sha256
    environment: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int | float] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)  # {"id": ..., "reason": ...}
    limit: int | None = None
    classes: list[str] = field(default_factory=list)  # those that the data set was restricted to; none = all
    started: str = ""
    wall_seconds: float = 0.0
    images_per_second: float = 0.0
    peak_memory_mib: float = 0.0
    schema_version: int = MANIFEST_VERSION


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Hash the outputs named in ``manifest.outputs`` and write the manifest beside them."""
    manifest.outputs = {name: file_sha256(folder / name) for name in sorted(manifest.outputs)}
    write_json(folder / MANIFEST_NAME, asdict(manifest), indent=2)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a finished stage.

    Raises:
        MissingInputError: the stage has not finished here.
        SchemaError: not a manifest of this schema version.
    """
    path = folder / MANIFEST_NAME
    loaded = read_json(path)
    if not isinstance(loaded, dict) or loaded.get("schema_version") != MANIFEST_VERSION:
        raise SchemaError(f"not a weaksam manifest of version {MANIFEST_VERSION}", where=path)
    try:
        manifest = TypeAdapter(Manifest).validate_python(loaded)
    except ValidationError as error:
        first = error.errors()[0]
        raise SchemaError(
            f"not a weaksam manifest ({'.'.join(map(str, first['loc']))}: {first['msg']})", where=path
        ) from error
    if any(Path(name).name != name for name in manifest.outputs):
        raise SchemaError("not a weaksam manifest (an output lies elsewhere)", where=path)
    return manifest


def changed_outputs(folder: Path, manifest: Manifest) -> list[str]:
    """Return the outputs of a finished stage that are no longer what its manifest recorded."""
    return [
        name
        for name, digest in manifest.outputs.items()
        if not (folder / name).is_file() or file_sha256(folder / name) != digest
    ]


def check_input(path: Path, run: Path, producer: str) -> str:
    """Check that an input file is whole and fresh, and return its SHA-256.

    The file must be the one that its manifest describes, and the manifest's own inputs inside its run folder, which may
    be another run's, must be unchanged since. A file without a manifest beside it is accepted as it is from outside the
    run folder alone, where only an explicit path can point.

    Args:
        path: The input file.
        run: The run folder that relative input paths refer to.
        producer: Name of the stage that writes it, for messages.

    Raises:
        MissingInputError: no such file, or its stage has not finished.
        StaleInputError: the file or something upstream changed.
    """
    if not path.is_file():
        hint = f"run `weaksam {producer}` first" if producer else "give the path of a file"
        raise MissingInputError("no such file", where=path, hint=hint)
    digest = file_sha256(path)
    folder = path.parent
    if not (folder / MANIFEST_NAME).is_file():
        # However the path is written: an unfinished stage's folder is one in this run or in any other.
        in_a_run = folder.resolve().is_relative_to(run.resolve()) or (folder / RUN_RECORD).is_file()
        if producer and in_a_run:
            raise MissingInputError(
                f"the {producer} stage has not finished here (no {MANIFEST_NAME})",
                where=folder,
                hint=f"run `weaksam {producer}` with --resume",
            )
        return digest
    manifest = read_manifest(folder)
    hint = f"run `weaksam {manifest.stage}` again (--overwrite)"
    if manifest.outputs.get(path.name) != digest:
        raise StaleInputError("the file differs from what its manifest recorded", where=path, hint=hint)
    inside = folder.resolve().is_relative_to(run.resolve())
    own_run = run if inside else folder.parent.parent  # <run>/<stage>/<split>
    _check_upstream(manifest, folder, own_run, hint)
    return digest


def _check_upstream(manifest: Manifest, folder: Path, run: Path, hint: str) -> None:
    """Refuse a file whose own inputs have been made again since."""
    for name, record in manifest.inputs.items():
        upstream = run / record.path
        if not (upstream.parent / MANIFEST_NAME).is_file():
            continue  # made elsewhere, or cleaned away since: nothing to compare with
        now = read_manifest(upstream.parent).outputs.get(upstream.name)
        if now is not None and now != record.sha256:
            raise StaleInputError(
                f"made from another {name} ({record.path} has changed since)", where=folder, hint=hint
            )
