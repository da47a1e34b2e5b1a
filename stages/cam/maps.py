"""Maps of where each class is, from one pass over several views of an image (docs/method.md, sections 2.2, 2.6).

coarse: ReLU of the convolution over patch tokens.
cross: what the class token attends to, one map per layer and head.
fine: affinity between patches, applied to fused cross * coarse.

The paper takes the affinity from attention. Where attention is young, every row looks at the same informative
patches: the product is nearly constant on the objects and highest on the background. Affinities made of the local
token features do not have that fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from stages.cam.attention import class_to_patch, patch_to_patch
from stages.cam.classifier import ClassifierOutput, MultiClassTokenClassifier, in_float32
from stages.cam.conv_classifier import ConvClassifier
from stages.core.runtime.device import Precision, autocast

Affinity = Literal["attention", "transposed", "symmetric", "feature"]
TagClassifier = MultiClassTokenClassifier | ConvClassifier
Maps = NDArray[np.float32]
SINKHORN_STEPS = 3


@dataclass(frozen=True)
class MapRule:
    """How maps are made.

    Attributes:
        tta_scales: sizes of the views, the first is 1.
        tta_hflip: add horizontally flipped views.
        max_size: limit of the long side at scale 1, pixels.
        cells_per_token: map cells per token and axis.
        affinity: what spreads evidence into the fine map.
        affinity_temperature: softmax temperature of the feature affinity.
        cross_layers: layers whose cross maps are kept.
        test_logit_thresh: threshold of the label-free rule.
    """

    tta_scales: tuple[float, ...]
    tta_hflip: bool
    max_size: int
    cells_per_token: int
    affinity: Affinity
    affinity_temperature: float
    cross_layers: tuple[int, ...]
    test_logit_thresh: float


@dataclass(frozen=True)
class ImageMaps:
    """Maps of one image, each in [0, 1] on a grid that covers the image.

    Attributes:
        classes: (k,) class indices, ascending.
        logits: (C,) mean class-token logits over the views.
        coarse: (k, h, w).
        fine: (k, h, w); None from a classifier without attention, like `cross`.
        cross: (k, layers, heads, h, w).
    """

    classes: tuple[int, ...]
    logits: Maps
    coarse: Maps
    fine: Maps | None
    cross: Maps | None


@torch.no_grad()
def image_maps(
    model: TagClassifier,
    pixels: NDArray[np.uint8],
    classes: Sequence[int] | None,
    rule: MapRule,
    device: str = "cpu",
    precision: Precision = "fp32",
) -> ImageMaps:
    """Compute the maps of one image: the network in the given precision, all that follows in float32.

    Args:
        model: in evaluation mode.
        pixels: RGB (H, W, 3).
        classes: the image's tags, or None to take the predicted classes.
        rule: how.
        device: where the model lives.
        precision: of the network.
    """
    image = torch.from_numpy(pixels.copy()).to(device).permute(2, 0, 1)[None].float() / 255.0
    sizes = view_sizes(pixels.shape[0], pixels.shape[1], rule.tta_scales, rule.max_size, model.patch)
    with autocast(device, precision):
        views = [_view(model, image, size, rule) for size in sizes]
    views = [in_float32(view) for view in views]
    logits_C = torch.stack([view.class_logits_BC for view in views]).mean(dim=(0, 1))
    chosen = (
        tuple(sorted(classes)) if classes is not None else predicted_classes(logits_C, rule.test_logit_thresh)
    )
    rows, columns = (side // model.patch * rule.cells_per_token for side in sizes[0])
    total: list[Tensor] = []
    for view in views:
        kinds = _view_maps(view, chosen, rule)
        placed = [_gather_view(maps, (rows, columns)) for maps in kinds]
        total = placed if not total else [a + b for a, b in zip(total, placed, strict=True)]
    coarse, *others = (normalise(maps).cpu().numpy() for maps in total)
    fine, cross = others if others else (None, None)
    return ImageMaps(chosen, logits_C.cpu().numpy(), coarse, fine, cross)


def view_sizes(
    height: int, width: int, scales: Sequence[float], max_size: int, patch: int
) -> list[tuple[int, int]]:
    """Return (height, width) of each scale's view: multiples of the patch, so that tokens cover the whole image."""
    shrink = min(1.0, max_size / max(height, width))

    def side(length: int, scale: float) -> int:
        return max(1, round(length * shrink * scale / patch)) * patch

    return [(side(height, scale), side(width, scale)) for scale in scales]


def predicted_classes(logits_C: Tensor, threshold: float) -> tuple[int, ...]:
    """Return the classes above the threshold, or the best one if none is."""
    above = torch.nonzero(logits_C > threshold).flatten().tolist()
    return tuple(above) if above else (int(logits_C.argmax()),)


def normalise(maps: Tensor) -> Tensor:
    """Stretch each map [..., h, w] to [0, 1] in float32; a flat map becomes zero."""
    maps = maps.float()
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return torch.where(
        high > low, (maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny), 0.0
    )


def _view(model: TagClassifier, image_1CHW: Tensor, size: tuple[int, int], rule: MapRule) -> ClassifierOutput:
    """Run one scale, and its mirror image with it."""
    view = F.interpolate(image_1CHW, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    if rule.tta_hflip:
        view = torch.cat([view, view.flip(-1)])
    output: ClassifierOutput = model(view, record=True)
    return output


def _view_maps(view: ClassifierOutput, classes: tuple[int, ...], rule: MapRule) -> tuple[Tensor, ...]:
    """Return coarse [B, k, h, w], fine [B, k, h, w] and cross [B, k, layers, heads, h, w] of the chosen classes.

    A classifier without attention has the coarse maps alone.
    """
    attention, fused = view.attention_BLHNN, view.fused_BNN
    num_classes, grid = view.class_logits_BC.shape[1], view.coarse_BCHW.shape[-2:]
    index = torch.tensor(classes, device=view.coarse_BCHW.device)
    if attention is None or fused is None:
        return (view.coarse_BCHW[:, index],)
    # Attention entries scale with one over the number of patches: without this, small views would weigh most.
    patches = grid[0] * grid[1]
    coarse = view.coarse_BCHW[:, index]
    fused_cross = patches * class_to_patch(fused, num_classes, (grid[0], grid[1]))[:, index]
    affinity_BPP = patch_affinity(view, rule.affinity, rule.affinity_temperature)
    fine = torch.einsum("bpq,bkq->bkp", affinity_BPP, (fused_cross * coarse).flatten(2)).view_as(coarse)
    layers = list(rule.cross_layers) or list(range(attention.shape[1]))
    cross = patches * class_to_patch(attention[:, layers], num_classes, (grid[0], grid[1]))[:, :, :, index]
    return coarse, fine, cross.permute(0, 3, 1, 2, 4, 5)


def patch_affinity(view: ClassifierOutput, kind: Affinity, temperature: float) -> Tensor:
    """Return the matrix [B, P, P] whose row p says which patches share their evidence with patch p.

    attention: fused patch-to-patch attention (paper), scaled to a mean of 1 / P. transposed: what a patch receives
    instead of what it looks at. symmetric: made doubly stochastic (Sinkhorn), so that no patch is popular, then
    averaged with its transpose. feature: softmax of the cosine between centred token embeddings.
    """
    assert view.fused_BNN is not None, "affinities need recorded attention"
    if kind == "feature":
        features_BDP = view.features_BDHW.flatten(2)
        centred = F.normalize(features_BDP - features_BDP.mean(dim=2, keepdim=True), dim=1)
        return (centred.transpose(1, 2) @ centred / temperature).softmax(dim=-1)
    attention_BPP = patch_to_patch(view.fused_BNN, view.class_logits_BC.shape[1])
    if kind == "attention":
        return attention_BPP
    if kind == "transposed":
        return attention_BPP.transpose(1, 2)
    balanced = attention_BPP + 1e-8
    for _ in range(SINKHORN_STEPS):
        balanced = balanced / balanced.sum(dim=1, keepdim=True)
        balanced = balanced / balanced.sum(dim=2, keepdim=True)
    return (balanced + balanced.transpose(1, 2)) / 2


def _gather_view(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Put maps [B, ..., h, w] of an image (and its mirror, if B = 2) on the common grid and add them up."""
    if maps.shape[0] == 2:
        maps = torch.stack([maps[0], maps[1].flip(-1)])
    summed = maps.sum(dim=0)
    flat = summed.reshape(1, -1, *summed.shape[-2:]).float()
    placed = F.interpolate(flat, size, mode="bilinear", align_corners=False)
    return placed.reshape(*summed.shape[:-2], *size)
