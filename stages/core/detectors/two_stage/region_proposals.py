"""Region proposals and sampling in which an image does not depend on the others of its batch.

torchvision divides the losses of a batch by its anchors and draws samples from one generator. Here the loss is a mean
over images, and what is drawn for an image is drawn from the image's own stream: a batch cut up among processes or
passes gives the same gradient as the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork

from stages.core.detectors.spec import BoxLoss
from stages.core.runtime.image_generators import chosen_images, generators

PAD_MULTIPLE = 32
"""What torchvision's transform pads a batch to, pixels."""


class ImageSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """torchvision's sampler of positives and negatives with one generator per image."""

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and of the negatives chosen in each image; arguments as in torchvision."""
        own = generators(len(matched_idxs), matched_idxs[0].device)
        chosen = [
            self._image(labels, None if own is None else own[row]) for row, labels in enumerate(matched_idxs)
        ]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _image(self, labels_A: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        positives = torch.where(labels_A >= 1)[0]
        negatives = torch.where(labels_A == 0)[0]
        wanted = min(len(positives), int(self.batch_size_per_image * self.positive_fraction))
        masks = []
        for rows, count in ((positives, wanted), (negatives, self.batch_size_per_image - wanted)):
            order = torch.randperm(len(rows), generator=generator, device=rows.device)
            mask = torch.zeros_like(labels_A, dtype=torch.uint8)
            mask[rows[order[:count]]] = 1
            masks.append(mask)
        return masks[0], masks[1]


class FloatAnchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's anchors, which take the precision of the feature maps, always in float32."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors [A, 4] of each image in pixels of its padded batch."""
        # A view of one number tells shape, device and precision without a copy of the maps.
        shapes = [maps.new_zeros((), dtype=torch.float32).expand(maps.shape) for maps in feature_maps]
        anchors: list[Tensor] = super().forward(image_list, shapes)
        return anchors


class ImageMeanRPN(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's region proposal network with losses that are means over images.

    Attributes:
        box_loss: `smooth-l1` with beta 1/9 (torchvision's own), or `l1`.
    """

    box_loss: BoxLoss = "smooth-l1"

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss; arguments as in torchvision, anchors of image 0 first."""
        counts = [len(own) for own in labels]
        found = []
        for row, (scores, deltas) in enumerate(
            zip(torch.split(objectness, counts), torch.split(pred_bbox_deltas, counts), strict=True)
        ):
            with chosen_images([row]):
                found.append(self._image_loss(scores, deltas, labels[row], regression_targets[row]))
        return (
            torch.stack([objectness for objectness, _ in found]).mean(),
            torch.stack([box for _, box in found]).mean(),
        )

    def _image_loss(
        self, scores_A1: Tensor, deltas_A4: Tensor, labels_A: Tensor, targets_A4: Tensor
    ) -> tuple[Tensor, Tensor]:
        if self.box_loss == "smooth-l1":
            objectness, box = super().compute_loss(scores_A1, deltas_A4, [labels_A], [targets_A4])
            return objectness, box
        positive, negative = (torch.where(masks[0])[0] for masks in self.fg_bg_sampler([labels_A]))
        chosen = torch.cat([positive, negative])
        box = F.l1_loss(deltas_A4[positive], targets_A4[positive], reduction="sum") / max(len(chosen), 1)
        return F.binary_cross_entropy_with_logits(scores_A1[chosen].flatten(), labels_A[chosen]), box


def padded_groups(images: Sequence[Tensor]) -> list[list[int]]:
    """Rows of the (3, H, W) images that need the same padding, group by group in order of their first."""
    groups: dict[tuple[int, int], list[int]] = {}
    for row, image in enumerate(images):
        height, width = image.shape[-2:]
        groups.setdefault((-(-height // PAD_MULTIPLE), -(-width // PAD_MULTIPLE)), []).append(row)
    return list(groups.values())
