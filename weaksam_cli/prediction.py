"""``weaksam predict IMAGES…``: the trained detector of a run, or any detector file, on new images."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weaksam_cli import completion
from weaksam_cli.conversion import FormatsOption, label_formats
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.stage_command import stage_request

if TYPE_CHECKING:
    from stages.core.artifacts.exchange.label_formats import LabelFormat
    from stages.core.detectors.checkpoints import DetectorFile
    from stages.core.runtime.execute import Outcome


@with_options(
    use("run", help="Run folder whose detector is used."),
    use("out", help="Output folder; default <run>/predict, or ./predictions."),
    use("limit", help="Take only the first N images."),
    "resume",
    "overwrite",
    "dry_run",
    "device",
    "precision",
    "deterministic",
    "workers",
    "max_failures",
    "as_json",
)
def predict(
    options: Options,
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGES...", help="Image files, folders (searched recursively), patterns."),
    ],
    stage: Annotated[
        Literal["retrain", "wsis"],
        typer.Option("--stage", help="retrain: boxes; wsis: boxes and masks of the trained segmenter."),
    ] = "retrain",
    detector: Annotated[
        Path | None,
        typer.Option("--detector", "--checkpoint", help="Detector file instead of the run's."),
    ] = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Merge the detections of several sizes and of mirrored images.")
    ] = False,
    tta_short_sides: Annotated[
        str | None,
        typer.Option(
            "--tta-short-sides",
            metavar="INTEGER,...",
            help="Short sides of --tta, pixels; default those of the training.",
        ),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="A mask for every box, from a segmenter prompted with it.")
    ] = False,
    segmenter: Annotated[
        str | None,
        typer.Option(
            "--segmenter",
            help="Segmenter of --masks; default that of the run's wsis, or sam-nano.",
            autocompletion=completion.segmenters,
        ),
    ] = None,
    segmenter_weights: Annotated[
        Path | None, typer.Option("--segmenter-weights", help="File of its weights.")
    ] = None,
    score_thresh: Annotated[
        float, typer.Option("--score-thresh", min=0, max=1, help="Leave out detections below.")
    ] = 0.3,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Draw every image into <out>/viz.")
    ] = True,
    formats: FormatsOption = None,
) -> None:
    """Apply the trained detector to new images: a COCO JSON file and a picture of each image.

    Needs neither tags nor a data set.
    """
    from stages.core.datasets.photos import PHOTOS, open_photos
    from stages.core.detectors.checkpoints import DetectorFile
    from stages.core.registry import load_stage
    from stages.core.runtime.execute import execute
    from stages.core.runtime.processes import is_main
    from stages.predict.config import PredictConfig
    from stages.predict.trained_run import find_detector, mask_settings

    forms = label_formats(formats)
    file = DetectorFile.open(detector if detector is not None else find_detector(options.run, stage))
    folder = options.out or (Path("predictions") if options.run is None else options.run / "predict")
    run_masks = mask_settings(options.run) if masks else {}
    chosen = run_masks | {
        "segmenter": segmenter or run_masks.get("segmenter", "sam-nano"),
        "segmenter_weights": _weights(segmenter, segmenter_weights, run_masks),
    }
    config = PredictConfig(
        score_thresh=score_thresh,
        view_short_sides=_view_short_sides(file, tta, tta_short_sides),
        masks=masks,
        pictures=overlays,
        **chosen,
    )
    asked = replace(options, split=PHOTOS, run=options.run or folder, out=folder)
    split = open_photos(images, file.classes, leave_out=[folder])
    request = stage_request(asked, {"detector": file.path})
    outcome = execute(load_stage("predict"), config, request, split, {file.path: file})
    if not is_main():
        return
    written = _label_files(outcome, forms)
    _print(outcome, written, as_json=options.as_json, pictures=overlays)


def _view_short_sides(detector: DetectorFile, tta: bool, given: str | None) -> tuple[int, ...]:
    """Return the short sides of the views: those typed, `480,576`, or those of the training, or none.

    Raises:
        UsageError: text that is no list of sizes, or sizes that are nowhere recorded.
    """
    from stages.core.errors import UsageError
    from stages.predict.trained_run import training_view_sizes

    if given is None:
        return training_view_sizes(detector) if tta else ()
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"'{given}' is no list of sizes", where="--tta-short-sides", hint="give pixels, e.g. 480,576,688"
        )
    return tuple(int(part) for part in parts)


def _weights(segmenter: str | None, given: Path | None, prompting: dict[str, Any]) -> str:
    """File of the segmenter's weights; the run's belongs to the run's segmenter alone."""
    if given is not None:
        return os.fspath(given)
    own = segmenter is None or segmenter == prompting.get("segmenter")
    return str(prompting.get("segmenter_weights", "")) if own else ""


def _label_files(outcome: Outcome, formats: Sequence[LabelFormat]) -> list[Path]:
    """Write the predictions in other forms, too, below <out>/labels; made again from predictions.json each time."""
    from stages.core.artifacts.exchange.label_formats import write_labels
    from stages.predict.spec import PREDICTIONS

    if outcome.manifest is None:
        return []
    source = outcome.out / PREDICTIONS
    return [write_labels(source, name, outcome.out / "labels" / name) for name in formats]


def _print(outcome: Outcome, labels: Sequence[Path], *, as_json: bool, pictures: bool) -> None:
    from stages.predict.spec import PREDICTIONS
    from stages.predict.viz import PICTURES

    counts = dict(outcome.manifest.counts) if outcome.manifest else {}
    if as_json:
        found = {"status": outcome.status, "out": str(outcome.out), "images": outcome.plan.images}
        paths = {"file": str(outcome.out / PREDICTIONS), "labels": [str(path) for path in labels]}
        typer.echo(json.dumps({**found, **paths, "counts": counts}))
        return
    typer.echo(f"predict: {outcome.status} ({outcome.plan.images} images; {'; '.join(outcome.plan.notes)})")
    if outcome.manifest is None:
        return
    typer.echo("  " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items()))
    for path in (outcome.out / PREDICTIONS, *labels):
        typer.echo(f"  {path}")
    if pictures:
        typer.echo(f"  {outcome.out / PICTURES}{os.sep}")
