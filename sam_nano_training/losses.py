"""Losses of promptable segmentation: focal and dice on the best of several masks, error of the predicted IoU.

Weights follow Kirillov et al. 2023, appendix A (focal 20 : dice 1 : IoU 1), plus a focal term averaged over the
outline band, which the plain mean makes vanish for small objects.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT: Final = 20.0
BAND_WEIGHT: Final = 4.0
SINGLE_MASK_TOKEN: Final = 0


@dataclass(frozen=True)
class MaskLoss:
    """Scalar loss of one image's prompts, with the mean best IoU over targets for the log."""

    total: Tensor
    mask: float
    iou_error: float
    best_iou: float


def pairwise_losses(logits_PMN: Tensor, targets_PTN: Tensor, bands_PTN: Tensor) -> Tensor:
    """Computes the segmentation loss between every mask and every target of a prompt.

    Focal loss (gamma 2) is linear in the target, t * A(x) + (1 - t) * B(x), so all pairs are matrix products.

    Returns:
        losses (P, M, T).
    """
    probability = logits_PMN.sigmoid()
    softplus = F.softplus(logits_PMN)
    negative = probability.square() * softplus
    difference = (1 - probability).square() * (softplus - logits_PMN) - negative
    targets_PNT = targets_PTN.transpose(1, 2)
    bands_PNT = bands_PTN.transpose(1, 2)
    count = logits_PMN.shape[-1]
    focal = (difference @ targets_PNT + negative.sum(-1, keepdim=True)) / count
    band = difference @ (targets_PNT * bands_PNT) + negative @ bands_PNT
    band = band / bands_PTN.sum(-1)[:, None].clamp(min=1)
    overlap = 2 * probability @ targets_PNT + 1
    dice = 1 - overlap / (probability.sum(-1, keepdim=True) + targets_PTN.sum(-1)[:, None] + 1)
    return FOCAL_WEIGHT * focal + BAND_WEIGHT * band + dice


def pairwise_iou(logits_PMN: Tensor, targets_PTN: Tensor) -> Tensor:
    """Computes IoU (P, M, T) of masks thresholded at logit 0 with targets thresholded at one half."""
    masks = (logits_PMN > 0).float()
    ground_truths = (targets_PTN > 0.5).float()
    overlap = masks @ ground_truths.transpose(1, 2)
    union = masks.sum(-1, keepdim=True) + ground_truths.sum(-1)[:, None] - overlap
    return overlap / union.clamp(min=1)


def promptable_loss(
    logits_PMHW: Tensor,
    predicted_iou_PM: Tensor,
    targets_PTHW: Tensor,
    bands_PTHW: Tensor,
    valid_PT: Tensor,
    single_P: Tensor,
) -> MaskLoss:
    """Scores all four mask tokens of P prompts.

    Each right answer pulls the best of the three ambiguity masks; the single-mask token learns the first answer.
    The IoU head learns, for every mask, its IoU with the best matching answer.
    """
    logits = logits_PMHW.flatten(2)
    targets = targets_PTHW.flatten(2)
    losses = pairwise_losses(logits, targets, bands_PTHW.flatten(2))
    best = losses[:, SINGLE_MASK_TOKEN + 1 :].amin(dim=1)
    weight = valid_PT.float() / valid_PT.float().sum(dim=1, keepdim=True)
    ambiguous = (best * weight).sum(dim=1)
    single = losses[:, SINGLE_MASK_TOKEN, 0] * torch.where(single_P, 1.0, 0.3)
    with torch.no_grad():
        iou = pairwise_iou(logits, targets) * valid_PT[:, None].float()
        reached = iou.amax(dim=2)
        best_iou = (iou[:, SINGLE_MASK_TOKEN + 1 :].amax(dim=1) * weight).sum(dim=1).mean()
    iou_error = (predicted_iou_PM - reached).square().mean()
    mask_loss = (ambiguous + single).mean()
    return MaskLoss(
        mask_loss + iou_error, float(mask_loss.detach()), float(iou_error.detach()), float(best_iou)
    )
