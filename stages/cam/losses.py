"""Multi-label losses on image tags: sigmoid cross-entropy of every class score (docs/method.md, section 2.4)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from stages.cam.classifier import ClassifierOutput


def tag_losses(output: ClassifierOutput, tags_BC: Tensor) -> dict[str, Tensor]:
    """Return the soft-margin loss of class tokens and of the pooled patch map, and of the fine map if it can learn.

    The released code always has the third term. Its inputs are detached, so it reaches only the fusion, and its
    logits are never negative, so it rests at ln 2. Here it exists with a fusion that learns, on logits that can be
    negative.

    Args:
        output: one forward pass.
        tags_BC: 1 for each class present, else 0.
    """
    losses = {"loss_patch": F.multilabel_soft_margin_loss(output.patch_logits_BC, tags_BC)}
    if output.class_logits_BC is not output.patch_logits_BC:  # a convolutional classifier has no class tokens
        losses["loss_class"] = F.multilabel_soft_margin_loss(output.class_logits_BC, tags_BC)
    if output.fine_logits_BC is not None:
        losses["loss_fine"] = F.multilabel_soft_margin_loss(output.fine_logits_BC, tags_BC)
    return losses
