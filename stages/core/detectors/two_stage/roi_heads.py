"""Second stage of a two-stage detector whose per-RoI losses can be weighted one by one.

Faster R-CNN (Ren et al., 2015) and Mask R-CNN (He et al., 2017) as torchvision builds them; what is added is
a hook that sees the raw losses of every sampled RoI and returns their weights (RoI drop), pure-L1 box
regression (the paper's setting), and a top-k matcher for ablation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss

from stages.core.detectors.spec import BoxLoss
from stages.core.ops.precision import deterministic_algorithms

RoiWeights = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(classification loss [R], regression loss [R], foreground [R]) -> weights of the two losses, each [R]."""

Targets = list[dict[str, Tensor]]

SMOOTH_L1_BETA = 1 / 9
"""Where torchvision's smooth L1 turns from square to linear, in encoded-delta units."""


class WeightedRoIHeads(RoIHeads):  # type: ignore[misc]
    """torchvision's RoI heads with per-RoI loss weights.

    Attributes:
        roi_weights: the hook, or None to weight every RoI by 1.
        box_loss: `l1`, or `smooth-l1` with beta 1/9 (torchvision's own).
    """

    roi_weights: RoiWeights | None = None
    box_loss: BoxLoss = "l1"

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: Targets | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses in training, detections in evaluation; arguments as in torchvision."""
        if not self.training:
            detections, losses = super().forward(features, proposals, image_shapes, targets)
            return detections, losses
        proposals, matched, labels, deltas = self.select_training_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        logits_RC, deltas_RK = self.box_predictor(pooled)
        assert targets is not None
        trusted_R = torch.cat(
            [trusted_rows(own, len(rows)) for own, rows in zip(targets, labels, strict=True)]
        )
        losses = self._box_losses(logits_RC, deltas_RK, labels, torch.cat(deltas), trusted_R)
        if self.has_mask():
            losses["loss_mask"] = self._mask_loss(features, proposals, image_shapes, matched, labels, targets)
        return [], losses

    def _box_losses(
        self,
        logits_RC: Tensor,
        deltas_RK: Tensor,
        labels: list[Tensor],
        targets_R4: Tensor,
        trusted_R: Tensor,
    ) -> dict[str, Tensor]:
        """Means over images of means over an image's RoIs; `labels` comes image by image.

        `trusted_R`: RoIs of images whose boxes are those of people, which keep their weight whatever the hook says.
        """
        labels_R = torch.cat(labels)
        cls_R, reg_R = roi_losses(logits_RC, deltas_RK, labels_R, targets_R4, self.box_loss)
        if self.roi_weights is not None:
            keep_cls_R, keep_reg_R = self.roi_weights(cls_R.detach(), reg_R.detach(), labels_R > 0)
            cls_R = cls_R * torch.where(trusted_R, 1.0, keep_cls_R)
            reg_R = reg_R * torch.where(trusted_R, 1.0, keep_reg_R)
        # The denominator is the number of an image's sampled RoIs, dropped ones included.
        shares_R = torch.cat(
            [own.new_full((len(own),), 1 / max(len(own), 1), dtype=cls_R.dtype) for own in labels]
        )
        shares_R = shares_R / len(labels)
        return {"loss_classifier": (cls_R * shares_R).sum(), "loss_box_reg": (reg_R * shares_R).sum()}

    def _mask_loss(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        matched: list[Tensor],
        labels: list[Tensor],
        targets: Targets,
    ) -> Tensor:
        """Mask loss, a mean over images of means over foreground RoIs; not weighted (the paper drops no RoI here)."""
        foreground = [labels_R > 0 for labels_R in labels]
        boxes = [boxes_R4[keep] for boxes_R4, keep in zip(proposals, foreground, strict=True)]
        pooled = self.mask_head(self.mask_roi_pool(features, boxes, image_shapes))
        logits = self.mask_predictor(pooled).split([len(own) for own in boxes])
        # Targets are pooled from the masks without a gradient, which is deterministic anyway; asked for deterministic
        # algorithms, torchvision would take its Python form on a GPU: gigabytes per RoI of a large image.
        with deterministic_algorithms(False):
            losses: list[Tensor] = [
                maskrcnn_loss(own, [box], [target["masks"]], [target["labels"]], [indices_R[keep]])
                for own, box, target, indices_R, keep in zip(
                    logits, boxes, targets, matched, foreground, strict=True
                )
            ]
        return torch.stack(losses).mean()


def trusted_rows(target: dict[str, Tensor], count: int) -> Tensor:
    """Whether each of an image's `count` rows is exempt from RoI drop: bool [count], from the target's `trusted`."""
    flag = target.get("trusted")
    if flag is None:
        return torch.zeros(count, dtype=torch.bool, device=target["boxes"].device)
    return flag.expand(count)


def roi_losses(
    logits_RC: Tensor, deltas_RK: Tensor, labels_R: Tensor, targets_R4: Tensor, box_loss: BoxLoss
) -> tuple[Tensor, Tensor]:
    """Raw losses of every sampled RoI.

    Args:
        logits_RC: class logits, column 0 is background.
        deltas_RK: class-specific box deltas, K = 4 C.
        labels_R: 0 for background, else class + 1.
        targets_R4: encoded deltas to the matched box (weights 10, 10, 5, 5).

    Returns:
        Cross-entropy [R], and regression loss summed over the 4 coordinates [R], 0 for background. Float32.
    """
    labels_R = labels_R.long()
    cls_R = F.cross_entropy(logits_RC.float(), labels_R, reduction="none")
    rows = torch.arange(len(labels_R), device=labels_R.device)
    own_R4 = deltas_RK.float().reshape(len(labels_R), deltas_RK.shape[1] // 4, 4)[rows, labels_R]
    if box_loss == "l1":
        each_R4 = F.l1_loss(own_R4, targets_R4.float(), reduction="none")
    else:
        each_R4 = F.smooth_l1_loss(own_R4, targets_R4.float(), beta=SMOOTH_L1_BETA, reduction="none")
    # Background targets are deltas to an unrelated box, perhaps infinite: they must not reach a product.
    return cls_R, each_R4.sum(dim=1).masked_fill(labels_R == 0, 0.0)


class TopKMatcher:
    """Matcher that makes only the k best proposals of every box positive (an ablation; not the default).

    A proposal is positive when it is among the k best of some box and its best IoU reaches the threshold;
    all others, good ones included, become background. The matched box is the one of highest IoU.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(self, k: int, iou_threshold: float = 0.5) -> None:
        self.k = k
        self.iou_threshold = iou_threshold

    def __call__(self, iou_MP: Tensor) -> Tensor:
        """Return [P]: index of the matched box, or -1 for background."""
        best_P, match_P = iou_MP.max(dim=0)
        top_Mk = iou_MP.topk(min(self.k, iou_MP.shape[1]), dim=1).indices
        chosen_P = torch.zeros_like(best_P, dtype=torch.bool)
        chosen_P[top_Mk.flatten()] = True
        positive_P = chosen_P & (best_P >= self.iou_threshold)
        return torch.where(positive_P, match_P, self.BELOW_LOW_THRESHOLD)
