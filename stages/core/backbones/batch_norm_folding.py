"""Frozen batch normalisation merged with the convolution before it: the same function and gradients, less work.

With fixed statistics, BN(conv(x)) is a convolution with weights s W and a shift. While a network is trained, W is what
is learnt and s and the shift stay fixed, as if the layer were still there; the product is taken in each pass. For
inference it is taken once (`fold_for_inference`). Which convolution feeds which normalisation is observed on one
forward pass, so it holds for any backbone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from stages.core.backbones.timm_backbones import Backbone, batch_norms


class NormedConv(nn.Module):
    """A convolution with the frozen normalisation behind it: what is learnt is the convolution's own, unscaled.

    Attributes:
        conv: the convolution.
        scale_C, shift_C: of the normalisation.
    """

    def __init__(self, conv: nn.Conv2d, scale_C: Tensor, shift_C: Tensor) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("scale_C", scale_C)
        self.register_buffer("shift_C", shift_C)
        self.scale_C: Tensor
        self.shift_C: Tensor

    def forward(self, feats_BCHW: Tensor) -> Tensor:
        """Return the normalised output of the convolution."""
        output: Tensor = functional_call(self.conv, self._folded(), (feats_BCHW,))
        return output

    @torch.no_grad()
    def fold(self) -> nn.Conv2d:
        """Return the convolution with scale and shift in its weights; as trainable as it was, its bias too."""
        for name, values in self._folded().items():
            setattr(self.conv, name, nn.Parameter(values, self.conv.weight.requires_grad))
        return self.conv

    def _folded(self) -> dict[str, Tensor]:
        bias_C = self.shift_C if self.conv.bias is None else self.conv.bias * self.scale_C + self.shift_C
        return {"weight": self.conv.weight * self.scale_C[:, None, None, None], "bias": bias_C}


def merge_batch_norms(backbone: Backbone) -> int:
    """Merge every frozen normalisation whose input is a convolution's output with that convolution.

    Function, trainable parameters and their gradients stay those of the backbone with its normalisations. timm's fused
    normalisation + activation leaves its activation behind. Call after `Backbone.freeze_through`: a convolution that
    does not learn is folded for good.

    Returns:
        Number of normalisations merged.

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

    def replace(layer: nn.Module, by: nn.Module) -> None:
        parent, name = owners[id(layer)]
        setattr(parent, name, by)

    for conv, norm in pairs:
        merged = _merge(conv, norm)
        replace(conv, merged if any(own.requires_grad for own in conv.parameters()) else merged.fold())
        replace(norm, _what_is_left(norm))
    return len(pairs)


def fold_for_inference(network: nn.Module) -> None:
    """Turn each merged convolution of `network` into a plain one of the same function, in place.

    Weights are stored in this form. A network that was folded should not be trained: its scales would be learnt.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, NormedConv):
                setattr(parent, name, child.fold())


@torch.no_grad()
def _merge(conv: nn.Conv2d, norm: Any) -> NormedConv:
    scale_C = torch.rsqrt(norm.running_var + norm.eps)
    shift_C = -norm.running_mean * scale_C
    if norm.affine:
        scale_C, shift_C = scale_C * norm.weight, shift_C * norm.weight + norm.bias
    return NormedConv(conv, scale_C, shift_C)


def _what_is_left(norm: nn.Module) -> nn.Module:
    """The dropout and activation of timm's fused layer; nothing of a plain normalisation."""
    left = [
        getattr(norm, name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)
    ]
    left = [layer for layer in left if not isinstance(layer, nn.Identity)]
    return left[0] if len(left) == 1 else nn.Sequential(*left)
