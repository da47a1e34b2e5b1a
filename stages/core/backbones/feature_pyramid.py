"""Feature pyramid over any pretrained backbone: what the two-stage detectors take for theirs.

Feature Pyramid Networks (Lin et al., 2017); the pyramid itself is torchvision's. With a ResNet-50 backbone and
one extra pooled level this is the R50-FPN of the paper's retraining; with the embedded Lite0 it runs on a
CPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from stages.core.backbones.timm_backbones import Backbone


class PyramidBackbone(nn.Module):
    """A pretrained backbone and its feature pyramid, as torchvision's detectors want it.

    Attributes:
        out_channels: channels of every level.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        out_channels: int,
        extra_level: bool,
        norm_layer: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.out_channels = out_channels
        extra = LastLevelMaxPool() if extra_level else None
        self.fpn = FeaturePyramidNetwork(list(bottom_up.channels), out_channels, extra, norm_layer)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return name -> map [B, out_channels, H / stride, W / stride], finest first."""
        features = self.bottom_up(images_BCHW)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(i), feats) for i, feats in enumerate(features)))
        return levels
