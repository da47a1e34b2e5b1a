"""`predict`: a trained detector applied to images of no data set; resumable, shared out and recorded like any stage.

Boxes come from the detector of `retrain` or `wsis`. Masks come from Mask R-CNN itself, or from a promptable segmenter
that every box prompts (label-aware Segment Anything), the way `wsis` makes its pseudo masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.core.artifacts.coco_json import write_dataset
from stages.core.artifacts.detection_rows import DETECTION_ROWS, from_table, to_rows
from stages.core.artifacts.files import file_sha256
from stages.core.artifacts.table import ImageRows, Table
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.runtime.device import Precision
from stages.core.runtime.environment import package_version
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.spec import Counts, Plan, StageContext
from stages.core.structures.detections import Detections
from stages.core.viz.drawing import save_png
from stages.predict.config import PredictConfig
from stages.predict.masking import needs_segmenter, open_segmenter
from stages.predict.predictor import build_predictor
from stages.predict.spec import PREDICTIONS, SPEC
from stages.predict.viz import PICTURES, draw_detections, picture_names

CLASSES_SHOWN = 8


class PredictStage:
    """The `predict` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: PredictConfig, context: StageContext) -> Plan:
        """Build the models once, so that a damaged or missing file is found before the work."""
        detector = context.open_once(context.input("detector"), DetectorFile.open)
        detector.check(context.split.classes)
        detector.model()
        if needs_segmenter(config, detector):
            open_segmenter(config, "cpu")
        classes = ", ".join(context.split.classes[:CLASSES_SHOWN])
        others = len(context.split.classes) - CLASSES_SHOWN
        more = f" and {others} more" if others > 0 else ""
        return Plan(len(context.split.ids), (f"{detector.kind} for {classes}{more}",))

    def run(self, config: PredictConfig, context: StageContext) -> Counts:
        """Detect, mask and draw; write the COCO data set."""
        detector = context.open_once(context.input("detector"), DetectorFile.open)
        factory = PredictFactory(
            detector, context.split, context.out, config, context.device, context.precision
        )
        table = map_images(context, DETECTION_ROWS, factory, "predict")
        if table is None:
            return {}
        found = from_table(table, config.masks or detector.gives_masks)
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
class PredictFactory:
    """Builds the per-image function inside a worker process; everything it holds can be pickled."""

    detector: DetectorFile
    split: WeakSplit
    out: Path
    config: PredictConfig
    device: str
    precision: Precision

    def __call__(self) -> ImageFunction:
        """Load the models once and return image id -> rows; draws on the way."""
        split = self.split
        predict = build_predictor(self.detector, self.config, self.device, self.precision)
        pictures = picture_names(split.ids)

        def rows(image_id: str) -> ImageRows:
            pixels = load_image(split.image_path(image_id))
            found = predict(pixels)
            if self.config.pictures:
                picture = draw_detections(pixels, found, split.classes)
                save_png(self.out / PICTURES / pictures[image_id], picture)
            return to_rows(found, pixels.shape[0], pixels.shape[1])

        return rows


def _sizes(table: Table) -> dict[str, tuple[int, int]]:
    return {i: (row["image_h"], row["image_w"]) for i in table.ids for row in [table.image_row(i)]}


def _failed(context: StageContext) -> list[dict[str, str]]:
    """Return images without an entry, and why; the folder they lie in is the user's business."""
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


STAGE = PredictStage()
