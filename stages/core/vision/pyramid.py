"""Feature pyramid over any trunk: the backbone of the two-stage detectors.

Feature Pyramid Networks (Lin et al., 2017); the pyramid itself is torchvision's. With a ResNet-50 trunk and
one extra pooled level this is the R50-FPN of the paper's retraining; with the embedded Lite0 it runs on a
CPU.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from stages.core.vision.backbones import Trunk


class PyramidBackbone(nn.Module):
    """A trunk and its feature pyramid, as torchvision's detectors want it.

    Attributes:
        out_channels: channels of every level.
        level_names: names of the levels RoIs are pooled from, finest first (the pooled extra one excluded).
    """

    def __init__(self, trunk: Trunk, out_channels: int, extra_level: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.out_channels = out_channels
        self.level_names = tuple(str(level) for level in range(len(trunk.channels)))
        extra = LastLevelMaxPool() if extra_level else None
        self.fpn = FeaturePyramidNetwork(list(trunk.channels), out_channels, extra_blocks=extra)

    def forward(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """Return name -> map [B, out_channels, H / stride, W / stride], finest first."""
        # Depthwise and 1x1 convolutions run about a third faster on a CPU in this memory format.
        features = self.trunk(images_BCHW.contiguous(memory_format=torch.channels_last))
        levels: dict[str, Tensor] = self.fpn(OrderedDict(zip(self.level_names, features, strict=True)))
        return levels


def freeze_through(trunk: Trunk, stride: int) -> list[str]:
    """Take gradients away from every trunk parameter that the map at `stride` depends on.

    Which parameters those are is found by differentiating that map, so it holds for any architecture: for a
    ResNet and stride 4 they are the stem and the first residual stage. Stride 0 freezes nothing.

    Returns:
        Names of the frozen parameters, sorted.
    """
    if stride == 0:
        return []
    names = [name for name, parameter in trunk.named_parameters() if parameter.requires_grad]
    parameters = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    was_training = trunk.training
    trunk.eval()
    probe = torch.zeros(1, 3, 64, 64, device=parameters[0].device)
    reached = trunk(probe)[trunk.strides.index(stride)].sum()
    gradients = torch.autograd.grad(reached, parameters, allow_unused=True)
    trunk.train(was_training)
    frozen = []
    for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
        if gradient is not None:
            parameter.requires_grad_(False)
            frozen.append(name)
    return sorted(frozen)
