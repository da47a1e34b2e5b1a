"""VGG16 with dilated conv5 at stride 8, the backbone of the published detectors.

docs/method.md, section 5.2.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import VGG16_Weights, vgg16

from stages.core.backbones.timm_backbones import Backbone
from stages.core.errors import EnvironmentFault, SchemaError

NAME = "vgg16-d8"
POOL4, CONV5 = 23, 24
"""Positions in torchvision's feature list: the fourth max-pool, which is left out, and the first layer of conv5."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FC_SHAPE = (512, 7, 7)
"""Input of fc6 in the order its columns are stored."""


STAGES = (("layers.2", 2), ("layers.7", 4), ("layers.14", 8))
"""Last convolution of blocks 1 to 3 and the stride behind the pooling that follows it."""


class SingleMap(nn.Module):
    """Layers in a row, returned as a list of one map."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        # What `Backbone.freeze_through` asks a timm body for.
        self.feature_info = SimpleNamespace(info=[{"module": m, "reduction": r} for m, r in STAGES])

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """One map (B, 512, H / 8, W / 8)."""
        return [self.layers(images_BCHW)]


def build_vgg16_d8(pretrained: bool | Path, final_relu: bool = True) -> tuple[Backbone, dict[str, Tensor]]:
    """Build the backbone; with weights, also return fc6 and fc7 (`0.weight`, `0.bias`, `3.weight`, `3.bias`).

    Pool 4 and pool 5 are left out and conv5 has dilation 2, hence stride 8. Torchvision's weights are used
    with their own RGB statistics; a file holds a torchvision VGG16 state dict.

    Raises:
        EnvironmentFault: ImageNet weights cannot be fetched.
        SchemaError: the file does not hold VGG16.
    """
    network = _network(pretrained)
    layers: list[nn.Module] = []
    for position, layer in enumerate(list(network.features)[:-1]):
        if position == POOL4:
            continue
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
        if position >= CONV5 and isinstance(layer, nn.Conv2d):
            layer.dilation, layer.padding = (2, 2), (2, 2)
        layers.append(layer)
    if not final_relu:
        layers.pop()
    backbone = Backbone(
        SingleMap(nn.Sequential(*layers)), (512,), (8,), IMAGENET_MEAN, IMAGENET_STD, name=NAME
    )
    state = network.classifier.state_dict() if pretrained else {}
    return backbone, {name: value for name, value in state.items() if name[0] in "03"}


def fc6_for_rows(weight_OI: Tensor) -> Tensor:
    """Reorder fc6 columns from (C, 7, 7) to the (7, 7, C) in which RoI pooling returns its bins."""
    return weight_OI.reshape(-1, *FC_SHAPE).permute(0, 2, 3, 1).flatten(1)


def _network(pretrained: bool | Path) -> Any:
    if isinstance(pretrained, Path):
        network = vgg16(weights=None)
        try:
            network.load_state_dict(load_file(pretrained))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise SchemaError(f"not the weights of VGG16 ({error})", where=pretrained) from error
        return network
    try:
        return vgg16(weights=VGG16_Weights.IMAGENET1K_V1 if pretrained else None)
    except (OSError, RuntimeError) as error:
        raise EnvironmentFault(
            f"ImageNet weights of VGG16 cannot be had ({error})",
            where=torch.hub.get_dir(),
            hint="connect once so that torchvision caches them, or give weights=FILE",
        ) from error
