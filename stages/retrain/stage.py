"""`retrain`: an ordinary detector on the pseudo boxes of `pgt`, with RoI drop; then its detections on the split.

On a train split: fit, then apply. On a test split: apply the train split's checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from stages.core.artifacts.coco_json import read_dataset, write_results
from stages.core.detectors.checkpoints import BOX_KINDS, AnyDetector, DetectorFile, recorded_view_sizes
from stages.core.detectors.detr import check_detr, require_transformers
from stages.core.detectors.fitting import total_steps, train_detector
from stages.core.detectors.inference import detect_split
from stages.core.detectors.mask2former import Mask2Former
from stages.core.detectors.spec import DetrSpec
from stages.core.detectors.training_data import PseudoGroundTruthData, training_images
from stages.core.detectors.two_stage.faster_rcnn import save_detector
from stages.core.spec import Counts, Plan, StageContext
from stages.core.structures.detections import Detections
from stages.retrain.config import RetrainConfig
from stages.retrain.roi_drop import DropMeter, DropRule
from stages.retrain.spec import CHECKPOINT, DETECTIONS, SPEC


class RetrainStage:
    """The `retrain` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: RetrainConfig, context: StageContext) -> Plan:
        """Read the pseudo boxes, or the checkpoint's class list, and say how long the training is."""
        if not context.trains:
            detector = context.open_once(context.input("checkpoint"), DetectorFile.open)
            detector.check(context.split.classes, BOX_KINDS)
            detector.model()
            return Plan(len(context.split.ids), ("apply only",))
        spec = config.detector_spec()
        if isinstance(spec, DetrSpec):
            check_detr(spec)
            require_transformers()
        taken = read_dataset(context.input("pgt"), context.split)
        pgt = large_enough(taken.boxes, config.min_box_side_px)
        usable = len(training_images(context.split, pgt))
        steps = total_steps(config, usable)
        notes = (f"pgt: {taken.summary()}", f"{usable} images to learn from, {steps} steps")
        return Plan(len(context.split.ids), notes)

    def run(self, config: RetrainConfig, context: StageContext) -> Counts:
        """Fit on a train split, then apply."""
        counts: Counts = {}
        checkpoint = context.out / CHECKPOINT
        if context.trains:
            counts = self._fit(config, context)
        else:
            checkpoint = context.input("checkpoint")
        detector = context.open_once(checkpoint, DetectorFile.open)
        detections = detect_split(
            context,
            detector,
            score=config.train_score_thresh if context.split.role == "train" else None,
            view_sizes=config.view_sizes(() if context.trains else recorded_view_sizes(detector.path)),
        )
        if detections is not None:
            write_results(context.out / DETECTIONS, context.split, detections)
            counts["detections"] = sum(len(found) for found in detections.values())
        return counts

    def _fit(self, config: RetrainConfig, context: StageContext) -> Counts:
        taken = read_dataset(context.input("pgt"), context.split)
        pgt = large_enough(taken.boxes, config.min_box_side_px)
        data = PseudoGroundTruthData(
            context.split,
            pgt,
            config.augmentation(),
            context.seed,
            with_masks=False,
            failures=context.failures,
            trusted=taken.trusted,
        )
        boxes = sum(len(found) for found in pgt.values())
        counts: Counts = {"training_images": len(data.ids), "pseudo_boxes": boxes}
        if context.resume and (context.out / CHECKPOINT).is_file():
            return counts
        warn_of_untaught(pgt, context)
        start = round(config.roi_drop_start_fraction * total_steps(config, len(data.ids)))
        meter = DropMeter(DropRule(config.roi_drop, config.tau_cls, config.tau_reg, start))

        def attach(model: AnyDetector) -> None:
            assert not isinstance(model, Mask2Former), "wsis alone trains it"
            model.drop_with(meter, meter.rule.compares)

        def advance(step: int) -> None:
            meter.step = step

        def per_image(images: int) -> dict[str, Tensor]:
            dropped, foreground = meter.pop_counts()
            return {"_dropped": dropped / images, "_foreground": foreground / images}

        model = train_detector(
            config,
            config.detector_spec(),
            data,
            replace(context, metrics_fn=lambda values: context.metrics(with_dropped_share(values))),
            prepare=attach,
            before_step=advance,
            after_step=per_image,
        )
        save_detector(context.out / CHECKPOINT, model, config.detector_spec(), context.split.classes)
        return counts


def with_dropped_share(values: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics with the share of dropped RoIs: counts can be averaged over passes, shares cannot."""
    line = dict(values)
    dropped, foreground = line.pop("dropped"), line.pop("foreground")
    return line | {"dropped_share": dropped / foreground if foreground else 0.0}


def large_enough(pgt: Mapping[str, Detections], least_px: float) -> dict[str, Detections]:
    """Leave out the boxes with a side shorter than `least_px`, original pixels."""
    sides = {image_id: own.boxes_xyxy[:, 2:] - own.boxes_xyxy[:, :2] for image_id, own in pgt.items()}
    return {image_id: own[np.all(sides[image_id] >= least_px, axis=1)] for image_id, own in pgt.items()}


def warn_of_untaught(pgt: Mapping[str, Detections], context: StageContext) -> None:
    """Name the classes that have no pseudo box at all."""
    taught = {int(c) for boxes in pgt.values() for c in boxes.classes}
    untaught = [name for c, name in enumerate(context.split.classes) if c not in taught]
    if untaught:
        context.log.warning("retrain: no pseudo box of %s, which cannot be learnt", ", ".join(untaught))


STAGE = RetrainStage()
