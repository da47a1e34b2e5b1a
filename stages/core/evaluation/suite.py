"""All figures of a run folder: every finished stage on its train and test split, in one ``evaluation.json``.

Rows keep how they were made (command, seed, fingerprint of the settings, hash of the artifact) beside what they
scored, so that a figure can be traced and repeated.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stages.core.artifacts.files import write_json
from stages.core.artifacts.manifest import MANIFEST_NAME, Manifest, check_input, read_manifest
from stages.core.errors import MissingInputError
from stages.core.evaluation.report import Report, finite
from stages.core.evaluation.tasks import TASKS, LabeledSplit, load_labeled_split, measure
from stages.core.registry import chain_specs

EVALUATION_NAME = "evaluation.json"
EVALUATION_VERSION = 1

HEADLINES: dict[str, tuple[str, ...]] = {
    "cams": ("pointing_coarse", "pointing_fine", "pointing_cross"),
    "prompts": ("precision_coarse", "precision_fine", "precision_cross", "object_recall", "points_per_image"),
    "proposals": ("recall50", "recall75", "recall90", "boxes_per_image"),
    "detections": ("ap50", "ap50_11point", "corloc", "coco_ap"),
    "pgt": ("precision50", "recall50", "mask_precision50", "mask_recall50", "boxes_per_image"),
    "segmentations": ("mask_ap25", "mask_ap50", "mask_ap70", "mask_ap75", "box_ap50"),
}
"""Task -> the figures shown for it in a table of the whole run, where the report has them."""


def evaluate_run(run: Path, data_root: Path, train: str, test: str = "") -> dict[str, Any]:
    """Measure every finished stage of a run and write ``<run>/evaluation.json`` atomically.

    Args:
        run: Run folder, ``<run>/<stage>/<split>/manifest.json``.
        data_root: Folder of data sets.
        train: Name of the train split.
        test: Name of the test split; empty for data sets without one.

    Returns:
        What the file holds: ``rows`` (one per artifact, with ``metrics`` the headline figures and ``report`` all
        of them) and ``metrics``, flat, named ``<stage>.<split>.<figure>``; undefined figures are None.

    Raises:
        MissingInputError: no stage has finished in this run.
        InputError: an artifact is damaged or differs from its manifest.
    """
    grounds: dict[tuple[str, int | None, tuple[str, ...]], LabeledSplit | str] = {}
    rows: list[dict[str, Any]] = []
    for stage in chain_specs():
        for split in filter(None, (train, test)):
            folder = run / stage.name / split
            if not (folder / MANIFEST_NAME).is_file():
                continue
            manifest = read_manifest(folder)
            key = (split, manifest.limit, tuple(manifest.classes))
            if key not in grounds:
                grounds[key] = _labeled(*key, data_root)
            for output in stage.outputs:
                if output.kind in TASKS and output.file_name in manifest.outputs:
                    rows.append(_row(run, folder / output.file_name, output.kind, manifest, grounds[key]))
    if not rows:
        raise MissingInputError(
            f"no stage has finished on {' or '.join(filter(None, (train, test)))}",
            where=run,
            hint="run the chain first, or name another run with --run",
        )
    result = {
        "schema_version": EVALUATION_VERSION,
        "run": run.resolve().name,
        "train": train,
        "test": test,
        "rows": rows,
        "metrics": _flat(rows),
    }
    write_json(run / EVALUATION_NAME, result, indent=2)
    return result


def _labeled(split: str, limit: int | None, classes: tuple[str, ...], data_root: Path) -> LabeledSplit | str:
    """The ground truth of a split, or why there is none (folders of images with tags only have none)."""
    try:
        return load_labeled_split(split, data_root, limit, classes)
    except MissingInputError as error:
        return error.what


def _row(
    run: Path, artifact: Path, task: str, manifest: Manifest, labeled: LabeledSplit | str
) -> dict[str, Any]:
    digest = check_input(artifact, run, manifest.stage)
    row: dict[str, Any] = {
        "stage": manifest.stage,
        "split": manifest.split,
        "artifact": artifact.relative_to(run).as_posix(),
        "artifact_sha256": digest,
        "task": task,
        "metrics": {},
        "report": None,
        "problem": labeled if isinstance(labeled, str) else None,
        "command": manifest.command,
        "seed": manifest.seed,
        "limit": manifest.limit,
        "config_sha256": config_fingerprint(manifest.config),
        "version": manifest.version,
        "wall_seconds": manifest.wall_seconds,
        "images_per_second": manifest.images_per_second,
    }
    if isinstance(labeled, LabeledSplit):
        report = measure(task, artifact, labeled)
        row["metrics"] = finite(_headline(report))
        row["report"] = report.as_json()
    return row


def _headline(report: Report) -> dict[str, float]:
    return {name: report.metrics[name] for name in HEADLINES[report.task] if name in report.metrics}


def _flat(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """Every figure of every row; the two artifacts of wsis differ in the names of their figures."""
    flat: dict[str, float | None] = {}
    for row in rows:
        for name, value in (row["report"] or {"metrics": {}})["metrics"].items():
            flat[f"{row['stage']}.{row['split']}.{name}"] = value
    return flat


def config_fingerprint(config: dict[str, Any]) -> str:
    """SHA-256 of resolved settings, the same for the same values in any order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
