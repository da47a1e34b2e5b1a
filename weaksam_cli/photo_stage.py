"""A trained detector applied to images of no data set, run like a stage: resumable, shared out, recorded.

Boxes come from the detector of `retrain` or `wsis`. Masks come from Mask R-CNN itself, or from a promptable
segmenter that every box prompts (label-aware Segment Anything), the way `wsis` makes its pseudo masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from stages.core.artifacts.coco_json import write_dataset
from stages.core.artifacts.detection_rows import DETECTION_ROWS, from_table, to_rows
from stages.core.artifacts.files import file_sha256
from stages.core.artifacts.table import ImageRows, Table
from stages.core.config import StageConfig
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.detectors.inference import detect
from stages.core.runtime.device import Precision
from stages.core.runtime.environment import package_version
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.segmenters.box_to_mask import MaskRule, masks_of_boxes
from stages.core.spec import Counts, InputSpec, OutputSpec, Plan, StageContext, StageSpec
from stages.core.structures.detections import Detections
from stages.core.structures.rle import decode_masks
from stages.core.viz.drawing import draw_boxes, enlarged, overlay_masks, save_png
from stages.core.viz.palette import class_color
from stages.wsis.config import WsisConfig
from stages.wsis.pseudo_masks import mask_rule, run_lengths

PREDICTIONS = "predictions.json"
PICTURES = "viz"
PICTURE_SIDES = (480, 1280)
"""Pictures have a long side in this range: labels stay legible, files stay small."""

Pixels = NDArray[np.uint8]
Masker = Callable[[Pixels, Detections], Detections]


SPEC = StageSpec(
    name="predict",
    summary="Apply the trained detector to new images: a COCO JSON file and a picture of each image.",
    inputs=(InputSpec("detector", "retrain", "detector.safetensors", "train", ("test",)),),
    outputs=(OutputSpec(PREDICTIONS, "predictions"),),
)


class PredictConfig(StageConfig):
    """What is kept of the detections, and what is made of them."""

    score_thresh: float = Field(0.3, ge=0, le=1, description="detections below are left out")
    view_sizes: tuple[int, ...] = Field(
        (), description="short sides of the views that detections are merged from; none = the plain view"
    )
    masks: bool = Field(False, description="a mask for every box")
    segmenter: str = Field("sam-nano", description="promptable segmenter of the masks")
    segmenter_weights: str = Field("", description="file of its weights")
    mask_settings: dict[str, Any] = Field(
        {}, description="settings of wsis that say how a box becomes a mask"
    )
    pictures: bool = Field(True, description="draw every image with its detections")

    def prompting(self) -> WsisConfig:
        """How a box becomes a mask."""
        own = {"segmenter": self.segmenter, "segmenter_weights": self.segmenter_weights}
        return WsisConfig.model_validate(self.mask_settings | own)


class PredictStage:
    """The `predict` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: PredictConfig, context: StageContext) -> Plan:
        """Build the models once, so that a damaged or missing file is found before the work."""
        detector = context.open_once(context.input("detector"), DetectorFile.open)
        detector.check(context.split.classes)
        detector.model()
        if _prompts(config, detector):
            _load_segmenter(config, "cpu")
        classes = ", ".join(context.split.classes[:8])
        more = len(context.split.classes) - 8
        return Plan(
            len(context.split.ids),
            (f"{detector.kind} for {classes}" + (f" and {more} more" if more > 0 else ""),),
        )

    def run(self, config: PredictConfig, context: StageContext) -> Counts:
        """Find, mask and draw; write the COCO data set."""
        detector = context.open_once(context.input("detector"), DetectorFile.open)
        factory = PhotoFactory(
            detector, context.split, context.out, config, context.device, context.precision
        )
        table = map_images(context, DETECTION_ROWS, factory, "predict")
        assert table is not None, "a run without shards does all parts"
        with_masks = config.masks or detector.gives_masks
        found = from_table(table, with_masks)
        info = {
            "description": "weaksam predict",
            "version": package_version(),
            "detector_sha256": file_sha256(detector.path),
            "score_thresh": config.score_thresh,
            "failed": _failed(context),
        }
        write_dataset(context.out / PREDICTIONS, context.split, found, _sizes(table), info)
        return _counts(found, context.split.classes)


@dataclass(frozen=True)
class PhotoFactory:
    """Builds the per-image function inside a worker process."""

    detector: DetectorFile
    split: WeakSplit
    out: Path
    config: PredictConfig
    device: str
    precision: Precision

    def __call__(self) -> ImageFunction:
        """Load the models once and return image id -> rows; draws on the way."""
        split, device, config = self.split, self.device, self.config
        model = self.detector.model().to(device)
        # Only ever lowered: above its own threshold, the detector's answers stay what they were at its training.
        if config.score_thresh < model.spec.score_thresh:
            model.keep_from(config.score_thresh)
        masked = _masker(config, device) if _prompts(config, self.detector) else _as_found
        pictures = picture_names(split.ids)

        def rows(image_id: str) -> ImageRows:
            pixels = load_image(split.image_path(image_id))
            found = detect(model, pixels, device, self.precision, config.view_sizes)
            found = found.reaching(config.score_thresh)
            found = masked(pixels, found)
            if config.pictures:
                picture = draw(pixels, found, split.classes)
                save_png(self.out / PICTURES / pictures[image_id], picture)
            return to_rows(found, pixels.shape[0], pixels.shape[1])

        return rows


def prompted(segmenter: Any, rule: MaskRule, pixels: Pixels, found: Detections) -> Detections:
    """The same boxes, each with the mask that a segmenter gives when prompted with it."""
    made = masks_of_boxes(segmenter, pixels, found.boxes_xyxy, rule)
    return found.with_masks(run_lengths(made))


def draw(pixels: Pixels, found: Detections, classes: Sequence[str]) -> Pixels:
    """Masks, boxes, names and scores on an image; the surest detection lies on top."""
    least, most = PICTURE_SIDES
    picture, factor = enlarged(pixels, int(np.clip(max(pixels.shape[:2]), least, most)))
    colors = [class_color(int(c)) for c in found.classes]
    if found.masks:
        size = (picture.shape[1], picture.shape[0])
        whole = decode_masks(found.masks, *pixels.shape[:2])
        masks = np.stack([cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in whole])
        picture = overlay_masks(picture, masks, colors)
    labels = [
        f"{classes[c]} {score:.2f}"
        for c, score in zip(found.classes.tolist(), found.scores.tolist(), strict=True)
    ]
    return draw_boxes(picture, found.boxes_xyxy * factor, colors, labels)


def picture_names(ids: Sequence[str]) -> dict[str, str]:
    """Image id -> name of its picture: `.png` instead of the suffix, or after it where two would collide."""
    whole: set[str] = set()
    while True:
        names = {i: f"{i}.png" if i in whole else str(Path(i).with_suffix(".png")) for i in ids}
        taken = Counter(name.lower() for name in names.values())
        # A name made longer may be another image's, hence once more: a.jpg, a.png and a.jpg.png.
        colliding = {i for i, name in names.items() if taken[name.lower()] > 1} - whole
        if not colliding:
            return names
        whole |= colliding


def _prompts(config: PredictConfig, detector: DetectorFile) -> bool:
    """Whether masks are asked for that the detector itself does not give."""
    return config.masks and not detector.gives_masks


def _masker(config: PredictConfig, device: str) -> Masker:
    segmenter, rule = _load_segmenter(config, device), mask_rule(config.prompting())
    return lambda pixels, found: prompted(segmenter, rule, pixels, found)


def _as_found(pixels: Pixels, found: Detections) -> Detections:
    return found


def _load_segmenter(config: PredictConfig, device: str) -> Any:
    from stages.core.segmenters.loading import load_segmenter

    settings = config.prompting()
    weights = settings.segmenter_weights
    return load_segmenter(settings.segmenter, Path(weights) if weights else None, device)


def _sizes(table: Table) -> dict[str, tuple[int, int]]:
    return {i: (row["image_h"], row["image_w"]) for i in table.ids for row in [table.image_row(i)]}


def _failed(context: StageContext) -> list[dict[str, str]]:
    """Images without an entry, and why; the folder they lie in is the user's business."""
    entries = []
    for image_id, reason in sorted(context.failures.entries.items()):
        short = reason.removeprefix(f"{context.split.image_path(image_id)}: ").partition("  hint: ")[0]
        entries.append({"file_name": image_id, "reason": short.strip()})
    return entries


def _counts(found: dict[str, Detections], classes: Sequence[str]) -> Counts:
    per_class = Counter(int(c) for one in found.values() for c in one.classes)
    counts: Counts = {
        "detections": sum(per_class.values()),
        "images_with_detections": sum(len(one) > 0 for one in found.values()),
    }
    return counts | {f"class {name}": per_class[i] for i, name in enumerate(classes) if per_class[i]}
