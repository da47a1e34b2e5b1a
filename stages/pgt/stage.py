"""`pgt`: keep, of a train split's detections, the boxes worth training on (paper Algorithm 2)."""

from __future__ import annotations

from stages.core.artifacts.coco_json import read_dataset, read_results, write_dataset
from stages.core.datasets.images import image_size
from stages.core.errors import ConfigError, ImageError, InputError, UsageError, did_you_mean
from stages.core.runtime.processes import is_main
from stages.core.spec import Counts, Plan, StageContext, Work
from stages.core.structures.detections import Detections
from stages.pgt.adaptive import ImageSelection, select
from stages.pgt.certainty import without_uncertain
from stages.pgt.config import PgtConfig
from stages.pgt.spec import PSEUDO_GROUND_TRUTH, SPEC
from stages.pgt.statistics import class_statistics, missing_tags, reasons
from stages.pgt.trusted import trusted_boxes


class PgtStage:
    """The `pgt` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: PgtConfig, context: StageContext) -> Plan:
        """Check the split's role, class names and that the detections belong to the split."""
        if not context.split.has_tags:
            raise UsageError(
                f"{context.split.name} is a test split: its tags are not for training",
                where="--split",
                hint=f"use {context.split.train_split}",
            )
        for name in config.exempt_classes:
            if name not in context.split.classes:
                raise ConfigError(
                    f"'{name}' is not a class of {context.split.name}",
                    where="exempt_classes",
                    hint=did_you_mean(name, context.split.classes),
                )
        found = read_results(context.input("detections"), context.split)
        total = sum(len(boxes) for boxes in found.values())
        notes = [f"{total} detections", f"rule: {config.mode}"]
        if context.has_input("trusted"):
            notes.append(f"trusted: {read_dataset(context.input('trusted'), context.split).summary()}")
        return Plan(len(context.split.ids), tuple(notes))

    def run(self, config: PgtConfig, context: StageContext) -> Counts:
        """Select, write `pgt.json`, and report per class; seconds of work, which the main process does alone."""
        if not is_main():
            return {}
        split, rule = context.split, config.rule(context.split.classes)
        found = read_results(context.input("detections"), split)
        selections: dict[str, ImageSelection] = {}
        sizes: dict[str, tuple[int, int]] = {}
        for image_id in context.progress(split.ids, Work("select", len(split.ids))):
            context.interrupted()
            try:
                sizes[image_id] = image_size(split.image_path(image_id))
            except ImageError as error:
                context.failures.record(image_id, str(error))
                continue
            own = found[image_id]
            selections[image_id] = select(own.boxes_xyxy, own.scores, own.classes, split.tags(image_id), rule)
        scores = {image_id: found[image_id].scores for image_id in selections}
        selections = without_uncertain(selections, scores, config.keep_fraction)
        boxes = {i: found[i][chosen.rows].with_masks(None) for i, chosen in selections.items()}
        trusted: dict[str, Detections] = {}
        if context.has_input("trusted"):
            path = context.input("trusted")
            trusted = trusted_boxes(read_dataset(path, split), sizes, path)
            boxes |= trusted
        # Not failures: nothing is wrong with these images, nothing was found in them.
        without, missing = reasons(selections, split.classes), missing_tags(selections, split.classes)
        statistics = [entry.as_dict() for entry in class_statistics(selections, split.classes)]
        self._report(statistics, context)
        info = {"rule": config.model_dump(mode="json"), "classes": statistics, "without_boxes": without}
        if missing:
            info["missing_tags"] = missing
        if trusted:
            info["trusted"] = [split.file_name(image_id) for image_id in trusted]
            without = {i: reason for i, reason in without.items() if i not in trusted}
            info["without_boxes"] = without
        write_dataset(context.out / PSEUDO_GROUND_TRUTH, split, boxes, sizes, info)
        total = sum(len(kept) for kept in boxes.values())
        return {
            "pseudo_boxes": total,
            "images_without_boxes": len(without),
            "images_missing_a_tag": len(missing),
            "trusted_images": len(trusted),
            "negatives": sum(not split.tags(image_id) for image_id in selections),
        }

    def _report(self, statistics: list[dict[str, int | float | str]], context: StageContext) -> None:
        """Log each class; a run that found nothing at all is an error, a class without boxes a warning."""
        for entry in statistics:
            context.metrics({"phase": "classes", **entry})
            if entry["tagged_images"] and not entry["boxes"]:
                context.log.warning(
                    "pgt: class %s has %s tagged images and no pseudo box",
                    entry["class"],
                    entry["tagged_images"],
                )
        if not any(entry["boxes"] for entry in statistics):
            raise InputError(
                "no image has a detection of one of its tags, so there is no pseudo ground truth",
                where=context.input("detections"),
                hint="look at the detections (weaksam evaluate --task detections), or train wsod longer",
            )


STAGE = PgtStage()
