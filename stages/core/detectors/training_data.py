"""Images with pseudo boxes (and masks) as training batches for a detector.

Augmentation is torchvision.transforms.v2: horizontal flip, a random short side, photometric jitter. What is
drawn depends on (seed, epoch, image id) alone, so a resumed run sees what the uninterrupted one would have
seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.settings import Augmentation
from stages.core.detectors.thin_images import check_not_thin
from stages.core.errors import InputError, SchemaError
from stages.core.runtime.seeding import derive_seed, global_generators
from stages.core.spec import FailureLog
from stages.core.structures.detections import Detections
from stages.core.structures.rle import decode_masks
from stages.core.training.loading import moved
from stages.core.training.readable_images import ReadableImages

MIN_SIDE = 1.0
"""Boxes with a shorter side (pixels, after resizing) are left out of the targets."""


@dataclass
class DetectionBatch:
    """One step: images [3, H, W] in [0, 1] and torchvision targets, in the order of `ids`.

    Attributes:
        ids: the images used, which are not those asked for where one of these cannot be.
    """

    ids: list[str]
    images: list[Tensor]
    targets: list[dict[str, Tensor]]

    def to(self, device: str) -> DetectionBatch:
        """The same batch on another device; copies to a GPU do not wait for what it is doing."""
        targets = [{name: moved(value, device) for name, value in own.items()} for own in self.targets]
        return DetectionBatch(self.ids, [moved(image, device) for image in self.images], targets)


class PseudoGroundTruthData:
    """Pseudo ground truth of a train split, image by image.

    Args:
        split: where the images are.
        pgt: image id -> pseudo boxes; images without any are left out of `ids`, unless they are negatives.
        augmentation: what happens to the images.
        seed: of the augmentation.
        with_masks: give masks too.
        failures: images that cannot be read or resized are recorded here; another image takes their place.
        trusted: images whose boxes are those of people; their targets say so, and RoI drop leaves them alone.

    Raises:
        InputError: no image has a pseudo box.
        SchemaError: masks are wanted and an image has none.
    """

    def __init__(
        self,
        split: WeakSplit,
        pgt: Mapping[str, Detections],
        augmentation: Augmentation,
        seed: int,
        with_masks: bool,
        failures: FailureLog,
        trusted: Collection[str] = (),
    ) -> None:
        self.split, self.pgt, self.seed, self.with_masks = split, pgt, seed, with_masks
        self.trusted = frozenset(trusted)
        self.ids = training_images(split, pgt)
        if not any(len(pgt.get(image_id, ())) for image_id in self.ids):
            raise InputError(
                f"no image of split {split.name} has a pseudo box",
                where="--pgt",
                hint="look at the detections, or lower the score threshold of the pgt stage",
            )
        if with_masks and any(len(found) and found.masks is None for found in map(self._boxes, self.ids)):
            raise SchemaError("the pseudo ground truth holds no masks", where=split.name)
        self._images = ReadableImages(split, self.ids, failures)
        self._augmentation, self._transform = augmentation, _build_transform(augmentation)

    def load(self, ids: Sequence[str], epoch: int) -> DetectionBatch:
        """Read and augment the images of a step."""
        batch = DetectionBatch([], [], [])
        for wanted in ids:
            used, (image, target) = self._images.first(wanted, lambda i: self.sample(i, epoch))
            batch.ids.append(used)
            batch.images.append(image)
            batch.targets.append(target)
        return batch

    def sample(self, image_id: str, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """One augmented image [3, H, W] in [0, 1] with its target.

        Raises:
            ImageError: the image cannot be read, or is too thin to be resized.
            SchemaError: a mask is not of the image's size.
        """
        path, limits = self.split.image_path(image_id), self._augmentation
        pixels = load_image(path)
        height, width = pixels.shape[:2]
        check_not_thin(height, width, min(limits.train_short_sides), limits.max_size, path)
        item = self._item(image_id, pixels, height, width)
        with global_generators(derive_seed(self.seed, "augment", epoch, image_id)):
            item = self._transform(item)
        target = {"boxes": item["boxes"].as_subclass(torch.Tensor).float(), "labels": item["labels"]}
        if self.trusted:
            target["trusted"] = torch.tensor(image_id in self.trusted)
        if self.with_masks:
            target["masks"] = item["masks"].as_subclass(torch.Tensor)
        return item["image"].as_subclass(torch.Tensor), target

    def _boxes(self, image_id: str) -> Detections:
        return self.pgt.get(image_id, Detections.empty())

    def _item(self, image_id: str, pixels: np.ndarray[Any, Any], height: int, width: int) -> dict[str, Any]:
        found = self._boxes(image_id)
        boxes = torch.from_numpy(found.boxes_xyxy.copy())
        item: dict[str, Any] = {
            "image": tv_tensors.Image(torch.from_numpy(pixels.copy()).permute(2, 0, 1)),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "labels": torch.from_numpy(found.classes + 1),
        }
        if self.with_masks:
            try:
                masks = decode_masks(found.masks or [], height, width)
            except ValueError as error:
                raise SchemaError(f"image {image_id}: {error}", where="pgt_masks.json") from error
            item["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return item


def training_images(split: WeakSplit, pgt: Mapping[str, Detections]) -> list[str]:
    """Images that a detector learns from: those with pseudo boxes, and negatives, which are background alone.

    An image with a tag and without a pseudo box is neither: it shows an object, nobody knows where.
    """
    return [i for i in split.ids if len(pgt.get(i, ())) or (split.has_tags and not split.tags(i))]


def _build_transform(settings: Augmentation) -> v2.Transform:
    strength = settings.color_jitter
    steps: list[v2.Transform] = [v2.RandomHorizontalFlip(settings.hflip_prob)]
    if settings.crop_size:
        # Large-scale jitter (Ghiasi et al., 2021): what does not fill the square is padded.
        square = (settings.crop_size, settings.crop_size)
        steps += [v2.ScaleJitter(square, settings.jitter_scales), v2.RandomCrop(square, pad_if_needed=True)]
    else:
        steps.append(v2.RandomShortestSize(list(settings.train_short_sides), settings.max_size))
    if strength > 0:
        # No hue: it costs more than the rest together, and colour is rarely what tells classes apart.
        steps.append(v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.4 * strength))
    steps += [
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(min_size=MIN_SIDE),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
    ]
    return v2.Compose(steps)
