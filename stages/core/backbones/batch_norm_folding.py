"""Frozen batch normalisation folded into the convolution before it: the same function, a sixth less work on a CPU.

With fixed statistics, BN(conv(x)) is a convolution with scaled weights and a bias. Which convolution feeds which
normalisation is observed on one forward pass, so it holds for any backbone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from stages.core.backbones.timm_backbones import Backbone, batch_norms


def fold_batch_norms(backbone: Backbone) -> int:
    """Fold every normalisation whose input is a convolution's output; trainability of the weights is kept.

    timm's fused normalisation + activation leaves its activation behind. Call before any training: the weights
    that are learnt afterwards are the folded ones.

    Returns:
        Number of normalisations folded.

    Raises:
        ConfigError: see `Backbone.probe`.
    """
    producers: dict[int, nn.Conv2d] = {}
    pairs: list[tuple[nn.Conv2d, nn.Module]] = []
    alive: list[Tensor] = []  # an id may be reused once its tensor is gone

    def after_conv(conv: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        producers[id(output)] = conv
        alive.append(output)

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        conv = producers.get(id(inputs[0]))
        if conv is not None:
            pairs.append((conv, norm))

    convs = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    hooks = [conv.register_forward_hook(after_conv) for conv in convs]
    hooks += [norm.register_forward_pre_hook(before_norm) for norm in batch_norms(backbone)]
    try:
        backbone.probe()
    finally:
        for hook in hooks:
            hook.remove()
    owners = {
        id(child): (parent, name) for parent in backbone.modules() for name, child in parent.named_children()
    }
    for conv, norm in pairs:
        _fold(conv, norm)
        parent, name = owners[id(norm)]
        setattr(parent, name, _what_is_left(norm))
    return len(pairs)


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    trainable = conv.weight.requires_grad
    fuse: Callable[..., tuple[nn.Parameter, nn.Parameter]] = fuse_conv_bn_weights
    weight, bias = fuse(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.weight = nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last), trainable)
    conv.bias = nn.Parameter(bias.detach(), trainable)


def _what_is_left(norm: nn.Module) -> nn.Module:
    """The dropout and activation of timm's fused layer; nothing of a plain normalisation."""
    left = [
        getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)
    ]
    left = [layer for layer in left if not isinstance(layer, nn.Identity)]
    return left[0] if len(left) == 1 else nn.Sequential(*left)
