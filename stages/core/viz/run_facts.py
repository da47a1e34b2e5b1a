"""What a run folder tells about itself: finished and unfinished stages, figures, training curves.

Works on partial runs: a stage without a manifest has not finished, and its files are not looked at.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.artifacts.files import read_json
from stages.core.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from stages.core.errors import SchemaError, WeakSamError
from stages.core.registry import CHAIN

EVALUATION_FILE = "evaluation.json"
Series = list[tuple[int, float]]


@dataclass(frozen=True)
class StageFacts:
    """One stage on one split.

    Attributes:
        stage: Stage name.
        split: Split name.
        folder: Its output folder.
        manifest: None while the stage has not finished.
        curves: Phase -> quantity -> (step, value) pairs from ``metrics.jsonl``.
    """

    stage: str
    split: str
    folder: Path
    manifest: Manifest | None
    curves: dict[str, dict[str, Series]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunFacts:
    """A run folder.

    Attributes:
        name: Its folder's name.
        stages: Stages with an output folder, in the order of the chain, train split first.
        figures: Content of ``evaluation.json``, or None.
        problems: What could not be read, one sentence each.
    """

    name: str
    stages: tuple[StageFacts, ...]
    figures: dict[str, Any] | None
    problems: tuple[str, ...]

    def finished(self, split: str) -> dict[str, Path]:
        """Stage -> folder of the stages that finished on a split."""
        return {s.stage: s.folder for s in self.stages if s.manifest is not None and s.split == split}

    def limit(self, split: str) -> int | None:
        """The smallest ``--limit`` that stages of a split ran with: those images went through all."""
        limits = [s.manifest.limit for s in self.stages if s.manifest is not None and s.split == split]
        return min((n for n in limits if n is not None), default=None)

    def classes(self, split: str) -> tuple[str, ...]:
        """The classes that stages of a split were restricted to; empty = all."""
        made = [s.manifest for s in self.stages if s.manifest is not None and s.split == split]
        return tuple(made[-1].classes) if made else ()


def read_run(run: Path, splits: tuple[str, ...]) -> RunFacts:
    """Read what a run folder holds for these splits; damaged files become problems, not errors."""
    stages: list[StageFacts] = []
    problems: list[str] = []
    for stage in CHAIN:
        for split in splits:
            folder = run / stage / split
            if not folder.is_dir():
                continue
            manifest = None
            if (folder / MANIFEST_NAME).is_file():
                try:
                    manifest = read_manifest(folder)
                except WeakSamError as error:
                    problems.append(error.what)
            stages.append(StageFacts(stage, split, folder, manifest, read_curves(folder / "metrics.jsonl")))
    figures = None
    if (run / EVALUATION_FILE).is_file():
        try:
            figures = _mapping(run / EVALUATION_FILE)
        except WeakSamError as error:
            problems.append(f"{EVALUATION_FILE}: {error.what}")
    return RunFacts(run.resolve().name, tuple(stages), figures, tuple(problems))


def _mapping(path: Path) -> dict[str, Any]:
    loaded = read_json(path)
    if not isinstance(loaded, dict):
        raise SchemaError("expected a mapping of figures", where=path)
    return loaded


def read_curves(path: Path) -> dict[str, dict[str, Series]]:
    """Read ``metrics.jsonl`` into phase -> quantity -> points.

    A resumed run repeats the steps after its last saved state; the later value of a step counts. Lines
    without step or epoch, and a last line cut short by a kill, are passed over.
    """
    if not path.is_file():
        return {}
    found: dict[str, dict[str, dict[int, float]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        # Figures taken once an epoch, such as those on held-out tags, have no step.
        step = values.get("step", values.get("epoch")) if isinstance(values, dict) else None
        if not isinstance(step, int):
            continue
        phase = found.setdefault(str(values.get("phase", "train")), {})
        for name, value in values.items():
            if name not in ("phase", "step", "epoch") and _is_number(value):
                phase.setdefault(name, {})[step] = float(value)
    return {
        phase: {name: sorted(points.items()) for name, points in quantities.items()}
        for phase, quantities in found.items()
    }


def _is_number(value: Any) -> bool:
    # NaN is written by json.dumps and read back; it differs from itself.
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e30
        and value == value
    )
