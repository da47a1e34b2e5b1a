"""A convolutional network as the classifier of tags: class activation maps, and no attention to read.

It gives the coarse map only; `prompt` and `propose` go on with the points they get.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from stages.cam.classifier import ClassifierOutput
from stages.core.backbones.timm_backbones import Backbone, build_backbone
from stages.core.errors import ConfigError

STRIDES = (16,)


class ConvClassifier(nn.Module):
    """A 3x3 convolution over a timm backbone's map at stride 16; RGB images in [0, 1] go in.

    Args:
        backbone: Image to feature map.
        num_classes: Channels of the map.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__()
        self.backbone, self.num_classes, self.patch = backbone, num_classes, backbone.strides[-1]
        self.head = nn.Conv2d(backbone.channels[-1], num_classes, 3, padding=1)
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    @property
    def tokens_and_positions(self) -> list[nn.Parameter]:
        """None: a convolutional network has neither."""
        return []

    def forward(self, images_BCHW: Tensor, record: bool = False) -> ClassifierOutput:
        """Classify RGB images in [0, 1], sides multiples of `patch`; there is no attention to `record`."""
        features: Tensor = self.backbone((images_BCHW - self.mean) / self.std)[-1]
        map_BCHW = self.head(features)
        logits_BC = map_BCHW.mean(dim=(-2, -1))
        return ClassifierOutput(logits_BC, logits_BC, map_BCHW.relu(), features)


def gives_feature_maps(name: str) -> bool:
    """Whether a timm model makes maps [B, C, H, W] at growing strides, as convolutional networks do; not tokens.

    Asked of the model itself, built without memory for its weights.
    """
    if not timm.is_model(name):
        return False
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    strides = {level["reduction"] for level in getattr(model, "feature_info", None) or ()}
    return len(strides) > 1 and str(getattr(model, "output_fmt", "NCHW")) == "NCHW"


def build_conv(num_classes: int, name: str, pretrained: bool | Path) -> ConvClassifier:
    """Build the classifier on any convolutional backbone with a map at stride 16.

    Raises:
        ConfigError: the backbone is a transformer, or has no such map.
        EnvironmentFault: the pretrained weights cannot be fetched.
    """
    if timm.is_model(name) and not gives_feature_maps(name):
        raise ConfigError(
            f"{name!r} is no convolutional network",
            where="cam.backbone",
            hint="set architecture to vit, or name a convolutional network of timm",
        )
    return ConvClassifier(build_backbone(name, STRIDES, pretrained, frozen_bn=bool(pretrained)), num_classes)
