"""Training batches: augmented images padded to one size, their proposals in the same pixels, their tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.tta import View, mirror_boxes
from stages.core.errors import InputError
from stages.core.runtime.seeding import derive_seed, global_generators, numpy_generator
from stages.core.spec import FailureLog
from stages.core.training.loading import moved
from stages.core.training.readable_images import ReadableImages
from stages.wsod.config import WsodConfig
from stages.wsod.criterion import Bags
from stages.wsod.evidence.class_scores import FLOOR, class_scores
from stages.wsod.proposals import ProposalSource

PCA_DEVIATIONS = np.array((0.2175, 0.0188, 0.0045))
PCA_VECTORS = np.array(((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203)))
"""Principal components of ImageNet's RGB values in [0, 1], one per column, and the spread along each."""


@dataclass(frozen=True)
class WsodBatch:
    """Image ids, images (3, H, W) uint8, each zero-padded at right and bottom, and what is known of each."""

    ids: list[str]
    images: list[Tensor]
    bags: Bags

    def to(self, device: str) -> WsodBatch:
        """The same batch on another device; copies to a GPU do not wait for what it is doing."""

        def each(parts: Sequence[Tensor]) -> list[Tensor]:
            return [moved(part, device) for part in parts]

        bags = Bags(each(self.bags.boxes_xyxy), each(self.bags.tags), each(self.bags.evidence))
        return WsodBatch(self.ids, each(self.images), bags)


class WeakData:
    """Images of a train split with tags and proposals; no other ground truth.

    Images without proposals are left out up front and recorded as failures, so that no step ever meets one; negatives,
    which have no tags, teach that none of their proposals is an object.

    Raises:
        InputError: nothing is left.
    """

    def __init__(
        self, split: WeakSplit, proposals: ProposalSource, config: WsodConfig, seed: int, failures: FailureLog
    ) -> None:
        self.split, self.config, self.seed = split, config, seed
        self.proposals = proposals
        self.ids: list[str] = []
        for image_id in split.ids:
            if len(proposals.boxes(image_id)):
                self.ids.append(image_id)
            elif split.tags(
                image_id
            ):  # a negative without proposals has nothing to teach, and nothing is wrong
                failures.record(image_id, "no usable proposal")
        if not any(split.tags(image_id) for image_id in self.ids):
            raise InputError(
                f"no image of split {split.name} has both a tag and a proposal",
                where="--proposals",
                hint="look at the proposals, or lower wsod.min_side_px",
            )
        self.corrected: dict[str, NDArray[np.float32]] = {}
        self.without_evidence = self._without_evidence() if config.learns_from_evidence else []
        self._images = ReadableImages(split, self.ids, failures)
        strength = config.color_jitter
        self._jitter = v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.4 * strength, 0.1 * strength)

    def load(self, ids: Sequence[str], epoch: int) -> WsodBatch:
        """Read and augment the images of a step; what is drawn depends on (seed, epoch, id) alone."""
        names, images, boxes, tags, evidence = [], [], [], [], []
        for wanted in ids:
            used, pixels_HW3 = self._images.read(wanted)
            pixels_CHW = torch.from_numpy(pixels_HW3.copy()).permute(2, 0, 1)
            image, own = self._augment(used, pixels_CHW, epoch)
            names.append(used)
            images.append(image)
            boxes.append(own)
            tags.append(torch.tensor(self.split.tags(used), dtype=torch.int64))
            if self.config.learns_from_evidence:
                evidence.append(torch.from_numpy(self.evidence(used)))
        return WsodBatch(names, images, Bags(boxes, tags, evidence))

    def plain(self, image_id: str, size: int) -> tuple[Tensor, Tensor]:
        """An image as it is, (3, h, w) uint8 with short side `size`, and its proposals in the same pixels.

        Raises:
            ImageError: it cannot be read.
        """
        pixels_CHW = torch.from_numpy(load_image(self.split.image_path(image_id)).copy()).permute(2, 0, 1)
        boxes = torch.from_numpy(self.proposals.boxes(image_id))
        return render(pixels_CHW, boxes, View(size, False), self.config.max_size)

    def _without_evidence(self) -> list[str]:
        """Images with a tag that has no usable map, or no proposal that fits its map."""
        return [i for i in self.ids if (self.evidence(i).max(axis=0) <= FLOOR).any()]

    def evidence(self, image_id: str) -> NDArray[np.float32]:
        """Map evidence of an image's proposals for its tags, (n, p) in [0, 1]; corrected, if it has been."""
        if image_id in self.corrected:
            return self.corrected[image_id]
        return class_scores(self.proposals.evidence(image_id), self.split.tags(image_id))

    def _augment(self, image_id: str, pixels_CHW: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        generator = numpy_generator(self.seed, "augment", epoch, image_id)
        size = int(generator.choice(self.config.train_short_sides))
        view = View(size, bool(generator.random() < self.config.hflip_prob))
        boxes = torch.from_numpy(self.proposals.boxes(image_id))
        image, boxes = render(pixels_CHW, boxes, view, self.config.max_size)
        if self.config.color_jitter > 0:
            with global_generators(derive_seed(self.seed, "jitter", epoch, image_id)):
                image = self._jitter(image)
        if self.config.lighting_std > 0:
            image = shift_lighting(image, generator.normal(0, self.config.lighting_std, 3))
        return image, boxes


def shift_lighting(image_CHW: Tensor, amounts: NDArray[np.float64]) -> Tensor:
    """Move an RGB uint8 image's colour along the principal components of ImageNet's (Krizhevsky et al., 2012, 4.1).

    amounts: (3,), one per component, in units of its standard deviation.
    """
    shift = 255 * (PCA_VECTORS * (amounts * PCA_DEVIATIONS)).sum(axis=1)
    moved = image_CHW.float() + torch.from_numpy(shift).float()[:, None, None]
    return moved.round().clamp(0, 255).byte()


def render(pixels_CHW: Tensor, boxes_xyxy: Tensor, view: View, max_size: int) -> tuple[Tensor, Tensor]:
    """Image and boxes as a view shows them: short side `view.size`, long side at most `max_size`, perhaps mirrored.

    pixels_CHW: uint8. Boxes are scaled by the exact ratio of the rounded sizes on each axis.
    """
    height, width = pixels_CHW.shape[-2:]
    scale = min(view.size / min(height, width), max_size / max(height, width))
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    image = pixels_CHW
    if (new_height, new_width) != (height, width):
        image = v2.functional.resize(pixels_CHW, [new_height, new_width], antialias=True)
    boxes = boxes_xyxy * boxes_xyxy.new_tensor((new_width / width, new_height / height) * 2)
    if view.flip:
        image, boxes = image.flip(-1), mirror_boxes(boxes, new_width)
    return image, boxes


def unrender_boxes(boxes: Tensor, view: View, image_CHW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) of a rendered view back in original pixels."""
    height, width = image_CHW.shape[-2:]
    if view.flip:
        boxes = mirror_boxes(boxes, width)
    return boxes * boxes.new_tensor((size_hw[1] / width, size_hw[0] / height) * 2)
