"""`cam`: train the classifier on tags, then draw its maps of every image.

On a train split: fit, then apply; maps are of the image's tags. On a test split: apply the train split's classifier;
maps are of the classes it predicts. A checkpoint given by hand is applied without training.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.cam.config import CamConfig
from stages.cam.spec import CAMS_FILE, CHECKPOINT, SPEC
from stages.core.artifacts.files import read_json, write_json
from stages.core.artifacts.schemas import CAMS, MAP_KINDS
from stages.core.artifacts.table import ImageRows, write_table
from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.runtime.device import Precision
from stages.core.runtime.parts import ImageFunction, map_images
from stages.core.runtime.processes import is_main
from stages.core.spec import Counts, Plan, StageContext

if TYPE_CHECKING:
    from stages.cam.maps import ImageMaps, TagClassifier


class CamStage:
    """The `cam` stage; see `stages.core.spec.Stage`."""

    spec = SPEC

    def plan(self, config: CamConfig, context: StageContext) -> Plan:
        """Read the checkpoint, or say how long the training is."""
        from stages.cam.augmentation import CropAugmentation
        from stages.cam.building import build_classifier, load_classifier
        from stages.core.training.loop import steps_per_epoch

        if context.has_input("checkpoint"):
            load_classifier(context.input("checkpoint"), config, context.split.classes)
            return Plan(len(context.split.ids), ("apply only",))
        CropAugmentation(config)
        build_classifier(config, len(context.split.classes), pretrained=False)
        steps = config.epochs * steps_per_epoch(
            len(context.split.ids), config.batch_size, config.grad_accum_steps
        )
        size = config.batch_size * config.grad_accum_steps
        return Plan(
            len(context.split.ids),
            (f"{config.architecture} on {config.backbone}: about {steps} steps of {size} images",),
        )

    def run(self, config: CamConfig, context: StageContext) -> Counts:
        """Fit on a train split, then write the maps."""
        counts: Counts = {}
        checkpoint = context.out / CHECKPOINT
        if context.has_input("checkpoint"):
            checkpoint = _adopt(context, config)
        else:
            counts = _fit(context, config)
        factory = _Factory(config, checkpoint, context.split, context.device, context.precision)
        table = map_images(context, CAMS, factory, "maps", {"classes": list(context.split.classes)})
        if table is None:
            return counts
        write_table(context.out / CAMS_FILE, CAMS, table)
        classes = len({(i, c) for i in table.ids for c in table.rows(i)["class_index"].tolist()})
        return counts | {
            "maps": table.num_rows,
            "classes_per_image": round(classes / max(len(table.ids), 1), 3),
        }


def _adopt(context: StageContext, config: CamConfig) -> Path:
    """Return the given checkpoint; on a train split its copy becomes the split's own, for the test splits."""
    from stages.cam.building import load_classifier, save_classifier, with_architecture
    from stages.core.weights.checkpoints import read_metadata

    given = context.input("checkpoint")
    if context.split.role == "test":
        return given
    model = load_classifier(given, config, context.split.classes)
    saved = with_architecture(config, read_metadata(given)["architecture"])
    save_classifier(context.out / CHECKPOINT, model, saved, context.split.classes)
    return context.out / CHECKPOINT


def _fit(context: StageContext, config: CamConfig) -> Counts:
    """Train and return what was counted, both once: a resumed run takes them from where it was."""
    from stages.cam.building import save_classifier
    from stages.cam.training import train_classifier

    counted = context.out / "state" / "fit_counts.json"
    if context.resume and (context.out / CHECKPOINT).is_file():
        return Counts(read_json(counted)) if counted.is_file() else {}
    model, counts = train_classifier(context, config)
    if is_main():
        write_json(counted, counts)
    save_classifier(context.out / CHECKPOINT, model, config, context.split.classes)
    return counts


@dataclass(frozen=True)
class _Factory:
    """Builds the function per image inside a worker process; picklable."""

    config: CamConfig
    checkpoint: Path
    split: WeakSplit
    device: str
    precision: Precision

    def __call__(self) -> ImageFunction:
        from stages.cam.building import load_classifier, map_rule
        from stages.cam.maps import ImageMaps, image_maps

        model = load_classifier(self.checkpoint, self.config, self.split.classes).to(self.device)
        rule = map_rule(self.config)
        layers = rule.cross_layers or _layers(model)

        def maps_of(image_id: str) -> ImageRows:
            pixels = load_image(self.split.image_path(image_id))
            tags = self.split.tags(image_id) if self.split.has_tags else None
            if tags == ():  # a negative has nothing to be mapped
                nothing = ImageMaps((), np.zeros(0, np.float32), np.zeros((0, 1, 1), np.float32), None, None)
                return map_rows(nothing, layers, pixels.shape[0], pixels.shape[1])
            maps = image_maps(model, pixels, tags, rule, self.device, self.precision)
            return map_rows(maps, layers, pixels.shape[0], pixels.shape[1])

        return maps_of


def _layers(model: TagClassifier) -> tuple[int, ...]:
    from stages.cam.classifier import MultiClassTokenClassifier

    return tuple(range(len(model.encoder.blocks))) if isinstance(model, MultiClassTokenClassifier) else ()


def map_rows(maps: ImageMaps, layers: tuple[int, ...], height: int, width: int) -> ImageRows:
    """Lay the maps of one image out as rows of `cams.h5`: by class, then coarse, fine, cross by layer and head."""
    rows: list[tuple[int, int, int, int]] = []
    values: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []
    for position, label in enumerate(maps.classes):
        for kind in ("coarse", "fine"):
            of_kind = getattr(maps, kind)
            if of_kind is not None:
                rows.append((label, MAP_KINDS.index(kind), -1, -1))
                values.append(of_kind[position])
        for place, layer in enumerate(layers if maps.cross is not None else ()):
            assert maps.cross is not None
            for head in range(maps.cross.shape[2]):
                rows.append((label, MAP_KINDS.index("cross"), layer, head))
                values.append(maps.cross[position, place, head])
    table = np.array(rows, np.int64).reshape(-1, 4)
    columns = {name: table[:, i] for i, name in enumerate(("class_index", "kind", "layer", "head"))}
    columns["grid_h"] = np.full(len(rows), maps.coarse.shape[-2])
    columns["grid_w"] = np.full(len(rows), maps.coarse.shape[-1])
    return ImageRows(columns, {"image_h": height, "image_w": width}, {"values": list(values)})


STAGE = CamStage()
