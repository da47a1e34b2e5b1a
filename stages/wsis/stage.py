"""`wsis`: pseudo boxes -> pseudo masks -> Mask R-CNN or Mask2Former -> instance masks on the split.

On a train split: masks, fit, then apply. On a test split: apply the train split's checkpoint.
"""

from __future__ import annotations

from stages.core.artifacts.coco_json import read_dataset, write_dataset, write_results
from stages.core.detectors.checkpoints import MASK_KINDS, DetectorFile, recorded_view_sizes
from stages.core.detectors.detr import require_transformers
from stages.core.detectors.fitting import total_steps, train_detector
from stages.core.detectors.inference import detect_split
from stages.core.detectors.mask2former import check_mask2former
from stages.core.detectors.spec import Mask2FormerSpec
from stages.core.detectors.training_data import PseudoGroundTruthData, training_images
from stages.core.detectors.two_stage.faster_rcnn import save_detector
from stages.core.runtime.processes import is_main
from stages.core.spec import Counts, Plan, StageContext
from stages.core.weights.cache import require_weights
from stages.wsis.config import WsisConfig
from stages.wsis.pseudo_masks import check_given, make_pseudo_masks
from stages.wsis.spec import CHECKPOINT, MASKS, SEGMENTATIONS, SPEC


class WsisStage:
    """The `wsis` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: WsisConfig, context: StageContext) -> Plan:
        """Read the pseudo boxes, or the checkpoint's class list, and say how long the training is."""
        if not context.trains:
            detector = context.open_once(context.input("checkpoint"), DetectorFile.open)
            detector.check(context.split.classes, MASK_KINDS)
            detector.model()
            return Plan(len(context.split.ids), ("apply only",))
        spec = config.detector_spec()
        if isinstance(spec, Mask2FormerSpec):
            check_mask2former(spec)
            require_transformers()
        taken = read_dataset(context.input("pgt"), context.split)
        pgt = taken.boxes
        if config.mask_source == "given":
            for image_id, found in pgt.items():
                check_given(image_id, found, context.input("pgt"))
        usable = len(training_images(context.split, pgt))
        boxes = sum(len(found) for found in pgt.values())
        steps = total_steps(config, usable)
        if config.mask_source == "prompt":
            require_weights(config.segmenter, config.segmenter_weights)
        notes = (f"pgt: {taken.summary()}", f"{boxes} boxes on {usable} images to mask, {steps} steps")
        return Plan(len(context.split.ids), notes)

    def run(self, config: WsisConfig, context: StageContext) -> Counts:
        """Make masks and fit on a train split, then apply."""
        counts: Counts = {}
        checkpoint = context.out / CHECKPOINT
        if context.trains:
            counts = self._fit(config, context)
        else:
            checkpoint = context.input("checkpoint")
        detector = context.open_once(checkpoint, DetectorFile.open)
        sizes = config.view_sizes(() if context.trains else recorded_view_sizes(detector.path))
        found = detect_split(context, detector, view_sizes=sizes)
        if found is not None:
            write_results(context.out / SEGMENTATIONS, context.split, found)
            counts["segmentations"] = sum(len(one) for one in found.values())
        return counts

    def _fit(self, config: WsisConfig, context: StageContext) -> Counts:
        made = make_pseudo_masks(context, config)
        if is_main():
            write_dataset(context.out / MASKS, context.split, made.masks, made.sizes)
        counts = dict(made.counts)
        data = PseudoGroundTruthData(
            context.split,
            made.masks,
            config.augmentation(),
            context.seed,
            with_masks=True,
            failures=context.failures,
        )
        counts["training_images"] = len(data.ids)
        spec = config.detector_spec()
        if not (context.resume and (context.out / CHECKPOINT).is_file()):
            model = train_detector(config, spec, data, context)
            save_detector(context.out / CHECKPOINT, model, spec, context.split.classes)
        return counts


STAGE = WsisStage()
