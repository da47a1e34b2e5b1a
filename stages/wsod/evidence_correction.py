"""Map evidence of a whole train split corrected by multi-fold learning, before the detector's own training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.backbones.batch_norm_folding import fold_for_inference, merge_batch_norms
from stages.core.backbones.timm_backbones import build_backbone
from stages.core.datasets.images import load_image
from stages.core.errors import ConfigError, ImageError
from stages.core.runtime.device import torch_threads
from stages.core.spec import StageContext, Work
from stages.wsod.batches import WeakData
from stages.wsod.config import WsodConfig
from stages.wsod.evidence.frozen_features import STRIDES, FrozenFeatures
from stages.wsod.evidence.multi_fold import Bag, correct


def corrected_evidence(
    data: WeakData, config: WsodConfig, context: StageContext
) -> dict[str, NDArray[np.float32]]:
    """Evidence (n, p) of every image that can be read; a pass over the images and seconds of linear algebra.

    The result depends on the images and their order alone. Every process of a distributed training works it out by
    itself.

    Raises:
        ConfigError: the backbone is none of timm's.
    """
    if config.backbone == "vgg16-d8":
        raise ConfigError(
            "needs a backbone of timm with maps at strides 16 and 32",
            where="wsod.evidence_folds",
            hint="use lite0-embedded or another backbone, or evidence_folds 0",
        )
    backbone = build_backbone(config.backbone, STRIDES, config.pretrained, frozen_bn=True)
    merge_batch_norms(backbone)
    fold_for_inference(backbone)
    ids = [image_id for image_id in data.ids if _can_be_read(data, image_id)]

    def load(image_id: str) -> tuple[Tensor, Tensor]:
        return data.plain(image_id, config.test_short_side)

    with torch_threads(config.num_threads):
        features = FrozenFeatures(backbone.eval(), ids, load, context.device)
        bags = []
        for image_id in context.progress(ids, Work("evidence", len(ids))):
            context.interrupted()
            columns_PN = torch.from_numpy(data.evidence(image_id)).T
            evidence = dict(zip(data.split.tags(image_id), columns_PN, strict=True))
            boxes = torch.from_numpy(data.proposals.boxes(image_id))
            bags.append(Bag(boxes, features(image_id), evidence))
        found = correct(bags, config.evidence_folds)
    return {
        image_id: np.stack([own[tag].numpy() for tag in data.split.tags(image_id)], axis=1)
        for image_id, own in zip(ids, found, strict=True)
        if own
    }


def _can_be_read(data: WeakData, image_id: str) -> bool:
    """Whether an image's file is whole; the training itself names those that are not."""
    try:
        load_image(data.split.image_path(image_id))
    except ImageError:
        return False
    return True
