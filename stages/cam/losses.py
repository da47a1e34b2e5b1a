"""Multi-label losses on image tags (paper section 3.1): sigmoid cross-entropy of every class score a network has."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from stages.cam.classifier import ClassifierOutput


def tag_losses(output: ClassifierOutput, tags_BC: Tensor) -> dict[str, Tensor]:
    """Return the soft-margin loss of class tokens and of the pooled patch map.

    The released code has a third term on the fine map. Its inputs are detached, so it reaches only the fusion gates,
    and its logits are never negative, so it rests at ln 2; it is left out.

    Args:
        output: one forward pass.
        tags_BC: 1 for each class present, else 0.
    """
    return {
        "loss_class": F.multilabel_soft_margin_loss(output.class_logits_BC, tags_BC),
        "loss_patch": F.multilabel_soft_margin_loss(output.patch_logits_BC, tags_BC),
    }
