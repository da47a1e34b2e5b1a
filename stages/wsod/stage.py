"""`wsod`: learn a detector from image tags and proposals, then write its detections.

On a train split: fit, then apply. On a test split: apply the train split's checkpoint.
"""

from __future__ import annotations

from stages.core.artifacts.coco_json import write_results
from stages.core.artifacts.schemas import PROPOSALS
from stages.core.artifacts.table import read_table
from stages.core.datasets.split import WeakSplit
from stages.core.errors import InputError
from stages.core.runtime.processes import is_main
from stages.core.spec import Counts, Plan, StageContext
from stages.wsod.batches import WeakData
from stages.wsod.config import WsodConfig
from stages.wsod.fitting import fit_detector, load_detector, optimiser_steps, save_detector, trained_with
from stages.wsod.inference import detect_split, other_settings
from stages.wsod.proposals import ProposalSource
from stages.wsod.spec import CHECKPOINT, DETECTIONS, SPEC

NAMED = 10
"""Images that a warning names."""


class WsodStage:
    """The `wsod` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: WsodConfig, context: StageContext) -> Plan:
        """Read the proposals and the checkpoint's class list, and say how long the training is."""
        table = read_table(context.input("proposals"), PROPOSALS)
        missing = sum(image_id not in table for image_id in context.split.ids)
        images = len(context.split.ids)
        config = fitting(config, context.split)
        notes = [f"{table.num_rows} proposals"]
        if missing:
            notes.append(f"{missing} images without proposals")
        if not context.trains:
            load_detector(context.input("checkpoint"), context.split.classes)
            return Plan(images, (*notes, "apply only"))
        steps = optimiser_steps(config, images - missing)
        return Plan(images, (*notes, f"{config.method}: {config.epochs} epochs, {steps} steps"))

    def run(self, config: WsodConfig, context: StageContext) -> Counts:
        """Fit on a train split, then apply."""
        counts: Counts = {}
        config = fitting(config, context.split)
        checkpoint = context.out / CHECKPOINT
        if context.trains:
            # Also after the fit: what was left out belongs in the manifest, whenever the run was interrupted.
            source = ProposalSource(context.input("proposals"), config)
            data = WeakData(context.split, source, config, context.seed, context.failures)
            counts["training_images"] = len(data.ids)
            if config.learns_from_evidence:
                counts["images_without_evidence"] = len(data.without_evidence)
                _warn_without_evidence(data, context)
            if not (context.resume and checkpoint.is_file()):
                model = fit_detector(config, data, context)
                save_detector(checkpoint, model, config, context.split.classes)
        else:
            checkpoint = context.input("checkpoint")
            differing = other_settings(config, trained_with(checkpoint))
            if differing and is_main():
                context.log.warning("settings other than the checkpoint was trained with: %s", differing)
        detections = detect_split(context, checkpoint, config)
        if detections is not None:
            write_results(context.out / DETECTIONS, context.split, detections)
            counts["detections"] = sum(len(found) for found in detections.values())
        return counts


def fitting(config: WsodConfig, split: WeakSplit) -> WsodConfig:
    """Settings that the data set allows: softmax over one class alone is 1 everywhere, so that one has a background."""
    if len(split.classes) > 1 or config.background_class:
        return config
    return config.model_copy(update={"background_class": True})


def _warn_without_evidence(data: WeakData, context: StageContext) -> None:
    """Name the images that are trained on with the scores alone."""
    missing = data.without_evidence
    if len(missing) == len(data.ids):
        raise InputError(
            "no image has map evidence of all its tags, but settings of evidence ask for it",
            where=context.input("proposals"),
            hint="run propose again with the maps (--cams), or set wsod.evidence_* to 0",
        )
    if missing and is_main():
        shown = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        context.log.warning(
            "%d images have a tag without a usable map, or no proposal that fits it: %s", len(missing), shown
        )


STAGE = WsodStage()
