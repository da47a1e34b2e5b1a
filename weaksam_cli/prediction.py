"""``weaksam predict IMAGES…``: the trained detector of a run, or any detector file, on new images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stages.core.registry import chain_specs
from weaksam_cli import completion
from weaksam_cli.options import Options, use, with_options
from weaksam_cli.state import OPTIONS

if TYPE_CHECKING:
    from stages.core.detectors.checkpoints import DetectorFile
    from stages.core.runtime.execute import Outcome

CHECKPOINTS = {
    spec.name: output.file_name
    for spec in chain_specs()
    for output in spec.outputs
    if output.kind == "detector"
}
"""Stages whose model needs nothing but an image, and the name of its file."""


@with_options(
    use("run", help="Run folder whose detector is used."),
    use("out", help="Output folder; default <run>/predict, or ./predictions."),
    use("limit", help="Take only the first N images."),
    "resume",
    "overwrite",
    "dry_run",
    "device",
    "precision",
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
        typer.Option("--stage", help="retrain: boxes; wsis: boxes and masks of the trained Mask R-CNN."),
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
) -> None:
    """Apply the trained detector to new images: a COCO JSON file and a picture of each image.

    Needs neither tags nor a data set.
    """
    from stages.core.datasets.photos import PHOTOS, open_photos
    from stages.core.detectors.checkpoints import DetectorFile
    from stages.core.runtime.execute import execute
    from stages.core.runtime.request import Request
    from weaksam_cli.photo_stage import PredictConfig, PredictStage

    checkpoint = DetectorFile.open(detector if detector is not None else find_detector(options.run, stage))
    folder = options.out or (Path("predictions") if options.run is None else options.run / "predict")
    prompting = mask_settings(options.run) if masks else {}
    config = PredictConfig(
        score_thresh=score_thresh,
        view_sizes=view_sizes(checkpoint, tta_short_sides) if tta or tta_short_sides else (),
        masks=masks,
        segmenter=segmenter or prompting.get("segmenter", "sam-nano"),
        segmenter_weights=_weights(segmenter, segmenter_weights, prompting),
        mask_settings=prompting,
        pictures=overlays,
    )
    request = Request(
        split=PHOTOS,
        run=folder if options.run is None else options.run,
        data=Path(),
        out=folder,
        overrides={"detector": checkpoint.path},
        limit=options.limit,
        resume=options.resume,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
        max_failures=options.max_failures,
        verbosity=OPTIONS.verbosity,
        show_progress=OPTIONS.progress,
    )
    split = open_photos(images, checkpoint.classes, leave_out=[folder])
    outcome = execute(PredictStage(), config, request, split, {checkpoint.path: checkpoint})
    _print(outcome, as_json=options.as_json, pictures=overlays)


def find_detector(run: Path | None, stage: str) -> Path:
    """The finished detector of a run.

    Raises:
        UsageError: no run given, no such stage, or several detectors to choose from.
        MissingInputError: the stage has not finished in this run.
    """
    from stages.core.errors import MissingInputError, UsageError, did_you_mean

    if stage not in CHECKPOINTS:
        raise UsageError(
            f"'{stage}' trains no detector that needs an image alone",
            where="--stage",
            hint=did_you_mean(stage, CHECKPOINTS),
        )
    if run is None:
        runs = sorted(
            {str(path.parents[2]) for path in Path("runs").glob(f"*/{stage}/*/{CHECKPOINTS[stage]}")}
        )
        known = f" (here: {', '.join(runs)})" if runs else ""
        raise UsageError("which detector?", where="predict", hint=f"give --run RUN{known} or --detector FILE")
    found = sorted((run / stage).glob(f"*/{CHECKPOINTS[stage]}"))
    finished = [path for path in found if (path.parent / "manifest.json").is_file()]
    if len(finished) > 1:
        names = ", ".join(path.as_posix() for path in finished)
        raise UsageError(f"several detectors: {names}", where=run, hint="choose one with --detector FILE")
    if not finished:
        other = next(
            (s for s in CHECKPOINTS if s != stage and any((run / s).glob(f"*/{CHECKPOINTS[s]}"))), None
        )
        alternative = f", or use --stage {other}" if other else ""
        state = "has not finished" if found else "was not run"
        raise MissingInputError(
            f"{stage} {state} in this run",
            where=run,
            hint=f"run `weaksam {stage} --split <dataset>_train --run {run}` first{alternative}",
        )
    return finished[0]


def view_sizes(detector: DetectorFile, given: str | None) -> tuple[int, ...]:
    """Short sides of the views of test-time augmentation: those given, or those of the detector's training.

    Args:
        detector: the detector's file; the manifest beside it holds its settings.
        given: sizes as typed, `480,576`, or None.

    Raises:
        UsageError: text that is no list of sizes, or sizes that are nowhere recorded.
    """
    from stages.core.detectors.checkpoints import recorded_view_sizes
    from stages.core.errors import UsageError

    if given is not None:
        parts = [part.strip() for part in given.split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise UsageError(
                f"'{given}' is no list of sizes",
                where="--tta-short-sides",
                hint="give pixels, e.g. 480,576,688",
            )
        return tuple(int(part) for part in parts)
    if sizes := recorded_view_sizes(detector.path):
        return sizes
    raise UsageError(
        "the sizes that the detector was trained at are not recorded beside it",
        where=detector.path,
        hint="name the short sides of the views, e.g. --tta-short-sides 480,576,688",
    )


def mask_settings(run: Path | None) -> dict[str, Any]:
    """How wsis made masks in this run, or nothing: then its defaults hold.

    Folders of test splits have settings too, but none that a mask was made with.
    """
    from stages.core.artifacts.manifest import read_manifest
    from stages.wsis.config import WsisConfig

    names = (
        "segmenter", "segmenter_weights", "mask_choice", "box_margin_fraction", "largest_component",
        "min_mask_area_fraction",
    )  # fmt: skip
    for masks in sorted(run.glob("wsis/*/pgt_masks.json")) if run is not None else ():
        if (masks.parent / "manifest.json").is_file():
            config = read_manifest(masks.parent).config
            return {
                name: config[name] for name in names if name in config and name in WsisConfig.model_fields
            }
    return {}


def _weights(segmenter: str | None, given: Path | None, prompting: dict[str, Any]) -> str:
    """File of the segmenter's weights; the run's belongs to the run's segmenter alone."""
    if given is not None:
        return os.fspath(given)
    own = segmenter is None or segmenter == prompting.get("segmenter")
    return str(prompting.get("segmenter_weights", "")) if own else ""


def _print(outcome: Outcome, *, as_json: bool, pictures: bool) -> None:
    from weaksam_cli.photo_stage import PICTURES, PREDICTIONS

    counts = dict(outcome.manifest.counts) if outcome.manifest else {}
    if as_json:
        found = {"status": outcome.status, "out": str(outcome.out), "images": outcome.plan.images}
        typer.echo(json.dumps({**found, "file": str(outcome.out / PREDICTIONS), "counts": counts}))
        return
    typer.echo(f"predict: {outcome.status} ({outcome.plan.images} images; {'; '.join(outcome.plan.notes)})")
    if outcome.manifest is None:
        return
    typer.echo("  " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in counts.items()))
    typer.echo(f"  {outcome.out / PREDICTIONS}")
    if pictures:
        typer.echo(f"  {outcome.out / PICTURES}{os.sep}")
