"""Pictures of `wsis`: pseudo masks (train splits) beside the segmenter's own masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.core.artifacts.coco_json import read_dataset, read_results
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.structures.detections import Detections
from stages.core.structures.rle import decode_masks
from stages.core.viz.drawing import Picture, contact_sheet, draw_boxes, overlay_masks, save_png
from stages.core.viz.palette import class_color

MIN_SCORE = 0.3


def draw(out: Path, split: WeakSplit, ids: Sequence[str], folder: Path) -> list[Path]:
    """Draw some images, one PNG each: pseudo masks, if there are any, and segmentations above `MIN_SCORE`.

    Args:
        out: the stage's output folder.
        split: where the images are.
        ids: which images.
        folder: where the pictures go.
    """
    found: dict[str, Mapping[str, Detections]] = {}
    if (out / "pgt_masks.json").is_file():
        found["pseudo masks"] = read_dataset(out / "pgt_masks.json", split).boxes
    found["Mask R-CNN"] = read_results(out / "segmentations.json", split)
    paths = []
    for image_id in ids:
        image = load_image(split.image_path(image_id))
        pictures = [
            _picture(
                image, masks.get(image_id, Detections.empty()), split, 0.0 if "pseudo" in title else MIN_SCORE
            )
            for title, masks in found.items()
        ]
        paths.append(folder / f"{image_id}.png")
        save_png(paths[-1], contact_sheet(pictures, columns=2, titles=list(found)))
    return paths


def _picture(image: Picture, found: Detections, split: WeakSplit, min_score: float) -> Picture:
    shown = found.reaching(min_score)
    colors = [class_color(c) for c in shown.classes.tolist()]
    masks = decode_masks(shown.masks or [], image.shape[0], image.shape[1])
    names = [split.classes[c] for c in shown.classes.tolist()]
    return draw_boxes(overlay_masks(image, masks, colors), shown.boxes_xyxy, colors, names, thickness=1)
