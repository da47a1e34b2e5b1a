"""What pseudo ground truth holds, class by class, and which images got none and why; no ground truth is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.pgt.adaptive import ImageSelection


@dataclass
class ClassStatistics:
    """Figures of one class over all images tagged with it."""

    name: str
    tagged_images: int = 0
    images_with_boxes: int = 0
    detections: int = 0
    above_threshold: int = 0
    boxes: int = 0
    uncertain_images: int = 0

    def as_dict(self) -> dict[str, int | float | str]:
        """For the metrics file and the `info` section of `pgt.json`."""
        per_image = self.boxes / self.images_with_boxes if self.images_with_boxes else 0.0
        return {
            "class": self.name,
            "tagged_images": self.tagged_images,
            "images_with_boxes": self.images_with_boxes,
            "detections": self.detections,
            "above_threshold": self.above_threshold,
            "boxes": self.boxes,
            "boxes_per_image": round(per_image, 3),
            "uncertain_images": self.uncertain_images,
        }


def class_statistics(
    selections: Mapping[str, ImageSelection], classes: Sequence[str]
) -> list[ClassStatistics]:
    """One entry per class, in class order."""
    table = [ClassStatistics(name) for name in classes]
    for selection in selections.values():
        for part in selection.per_class:
            entry = table[part.class_index]
            entry.tagged_images += 1
            entry.images_with_boxes += len(part.rows) > 0
            entry.detections += part.detected
            entry.above_threshold += part.above_threshold
            entry.boxes += len(part.rows)
            entry.uncertain_images += part.uncertain
    return table


def reasons(selections: Mapping[str, ImageSelection], classes: Sequence[str]) -> dict[str, str]:
    """Image id -> why it has no pseudo box at all; images with some, and negatives, are left out."""
    found = {}
    for image_id, selection in selections.items():
        if len(selection.rows) or not selection.per_class:
            continue
        uncertain = [part.class_index for part in selection.per_class if part.uncertain]
        if uncertain:
            names = ", ".join(classes[c] for c in uncertain)
            found[image_id] = f"less certain than other images of {names} (keep_fraction)"
            continue
        names = ", ".join(classes[c] for c in selection.missing)
        unusable = (
            f" ({selection.unusable} detections have no area or no finite score)"
            if selection.unusable
            else ""
        )
        found[image_id] = f"no detection of its tags: {names}{unusable}"
    return found


def missing_tags(selections: Mapping[str, ImageSelection], classes: Sequence[str]) -> dict[str, list[str]]:
    """Image id -> its tags without a pseudo box, for images where another tag has one."""
    return {
        image_id: [classes[c] for c in selection.missing]
        for image_id, selection in selections.items()
        if len(selection.rows) and selection.missing
    }
