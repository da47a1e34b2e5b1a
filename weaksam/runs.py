"""A run folder: its finished stages, their manifests and metrics, and the artifacts of its splits."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.core.artifacts.files import read_json
from stages.core.artifacts.manifest import MANIFEST_NAME, Manifest, read_manifest
from stages.core.datasets import catalog
from stages.core.datasets.split import Role
from stages.core.errors import MissingInputError, UsageError, did_you_mean
from stages.core.registry import CHAIN
from weaksam.splits import SplitArtifacts


@dataclass(frozen=True)
class StageResult:
    """One finished stage on one split.

    Attributes:
        name: Name of the stage.
        split: Name of the split.
        folder: Where its files are.
        manifest: What was made from what: settings, counts, failures, seed, versions, time, memory.
    """

    name: str
    split: str
    folder: Path
    manifest: Manifest = field(repr=False)

    @classmethod
    def of_folder(cls, folder: Path) -> StageResult:
        """Read the manifest of a folder.

        Raises:
            MissingInputError: the stage has not finished there.
            SchemaError: its manifest cannot be read.
        """
        manifest = read_manifest(folder)
        return cls(manifest.stage, manifest.split, folder, manifest)

    @property
    def failures(self) -> dict[str, str]:
        """Image id -> why it could not be processed."""
        return {entry["id"]: entry["reason"] for entry in self.manifest.failures}

    def training(self) -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl``: step, losses, learning rate; empty for stages that do not train.

        A last line that a kill cut short is left out.
        """
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return found


@dataclass(frozen=True)
class Run:
    """The finished stages of a run folder.

    Attributes:
        path: The folder, ``<run>/<stage>/<split>/``.
        data: Folder of the data sets that its splits come from.
        stages: What has finished, in the order of the chain.
    """

    path: Path
    data: Path
    stages: tuple[StageResult, ...]
    _opened: dict[str, SplitArtifacts] = field(default_factory=dict, repr=False, compare=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that something has finished on, in the order of the stages."""
        return tuple(dict.fromkeys(stage.split for stage in self.stages))

    @property
    def train(self) -> SplitArtifacts:
        """Artifacts of the train split."""
        return self.artifacts(self._only("train"))

    @property
    def test(self) -> SplitArtifacts:
        """Artifacts of the test split."""
        return self.artifacts(self._only("test"))

    def artifacts(self, split: str) -> SplitArtifacts:
        """Return what the run has made of the images of a split.

        Raises:
            UsageError: nothing has finished on a split of this name.
            InputError: the data set is not there, or not what it was.
        """
        if split not in self.splits:
            raise UsageError(
                f"nothing has finished on '{split}'", where=self.path, hint=did_you_mean(split, self.splits)
            )
        if split not in self._opened:
            own = [stage for stage in self.stages if stage.split == split]
            limits = [stage.manifest.limit for stage in own if stage.manifest.limit is not None]
            folders = {stage.name: stage.folder for stage in own}
            self._opened[split] = SplitArtifacts(
                catalog.open_split(split, self.data), folders, min(limits, default=None)
            )
        return self._opened[split]

    def stage(self, name: str, split: str | None = None) -> StageResult:
        """Return a finished stage.

        Args:
            name: Name of the stage.
            split: Name of the split; may be left out where the stage has finished on one alone.

        Raises:
            UsageError: no such stage, or several splits to choose from.
            MissingInputError: it has not finished here.
        """
        if name not in CHAIN:
            raise UsageError(f"there is no stage '{name}'", hint=did_you_mean(name, CHAIN))
        found = [stage for stage in self.stages if stage.name == name and split in (None, stage.split)]
        if not found:
            on = "" if split is None else f" on {split}"
            raise MissingInputError(f"{name} has not finished{on} in this run", where=self.path)
        if len(found) > 1:
            splits = ", ".join(stage.split for stage in found)
            raise UsageError(f"{name} has finished on several splits", hint=f"choose one of {splits}")
        return found[0]

    def metrics(self) -> dict[str, float | None]:
        """Return every metric of ``evaluation.json``, named ``<stage>.<split>.<metric>``; empty before evaluation."""
        path = self.path / "evaluation.json"
        found: dict[str, float | None] = read_json(path)["metrics"] if path.is_file() else {}
        return found

    def evaluate(self) -> dict[str, float | None]:
        """Measure every artifact against the ground truth, write ``evaluation.json``, and return its metrics.

        Raises:
            InputError: an artifact is damaged or differs from its manifest.
        """
        from stages.core.evaluation.suite import evaluate_run

        train = next(iter(self._splits_of("train")), "")
        test = next(iter(self._splits_of("test")), "")
        evaluate_run(self.path, self.data, train, test)
        return self.metrics()

    def _splits_of(self, role: Role) -> list[str]:
        return [name for name in self.splits if catalog.locate(name, self.data).role == role]

    def _only(self, role: Role) -> str:
        names = self._splits_of(role)
        if len(names) != 1:
            shown = ", ".join(self.splits)
            raise MissingInputError(
                f"{len(names) or 'no'} {role} splits in this run, which has {shown}",
                where=self.path,
                hint="choose one with artifacts(name)",
            )
        return names[0]


def open_run(path: str | Path, data: str | Path | None = None) -> Run:
    """Open a run folder, finished or not.

    Args:
        path: The folder, e.g. ``runs/demo``.
        data: Folder of data sets; None is ``$WEAKSAM_DATA``, else ``data``. It must hold those the run was made from.

    Raises:
        MissingInputError: no such folder, or no stage has finished in it.
        SchemaError: a manifest cannot be read.
    """
    folder = Path(path)
    if not folder.is_dir():
        known = ", ".join(sorted(one.as_posix() for one in folder.parent.glob("*") if one.is_dir()))
        raise MissingInputError("no such run", where=folder, hint=f"beside it: {known or 'nothing'}")
    found = [
        StageResult.of_folder(manifest.parent)
        for stage in CHAIN
        for manifest in sorted((folder / stage).glob(f"*/{MANIFEST_NAME}"))
    ]
    # Of a stage, the train split first: what is applied to the test split was learned there.
    stages = sorted(found, key=lambda one: (CHAIN.index(one.name), one.manifest.started))
    if not stages:
        raise MissingInputError(
            "no stage has finished in this folder",
            where=folder,
            hint="expected <run>/<stage>/<split>/manifest.json",
        )
    root = catalog.data_root(None if data is None else Path(data))
    return Run(folder, root, tuple(stages))
