"""Random numbers per image: what is drawn for an image does not depend on the batch or the process it is in.

The training loop opens a scope with one generator per image of the step; layers that draw (dropout, stochastic depth,
sampling of RoIs) take theirs from it. Outside such a scope they fall back to torch's global generator.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

Made = dict[tuple[str, int], torch.Generator]

_seeds: ContextVar[tuple[int, ...] | None] = ContextVar("image_seeds", default=None)
_made: ContextVar[Made | None] = ContextVar("image_generators", default=None)


@contextlib.contextmanager
def image_streams(seeds: Sequence[int]) -> Iterator[None]:
    """Give each image of the step its own generators, made from its seed, for the block."""
    before, made = _seeds.set(tuple(seeds)), _made.set({})
    try:
        yield
    finally:
        _seeds.reset(before)
        _made.reset(made)


@contextlib.contextmanager
def chosen_images(rows: Sequence[int]) -> Iterator[None]:
    """Narrow the scope to some images of the step, for a part of it that sees only these."""
    seeds = _seeds.get()
    if seeds is None:
        yield
        return
    before = _seeds.set(tuple(seeds[row] for row in rows))
    try:
        yield
    finally:
        _seeds.reset(before)


def generators(images: int, device: torch.device) -> list[torch.Generator] | None:
    """The generators of the scope on a device, or None outside a scope or where the number of images is another."""
    seeds, made = _seeds.get(), _made.get()
    if seeds is None or made is None or len(seeds) != images:
        return None
    for seed in seeds:
        if (str(device), seed) not in made:
            made[str(device), seed] = torch.Generator(device).manual_seed(seed)
    return [made[str(device), seed] for seed in seeds]


def keep_mask(values: Tensor, share: float, counts: Sequence[int], per_row: bool = False) -> Tensor:
    """Bernoulli mask of `values` (or of its rows): 1 with probability `share`; rows of image 0 come first.

    Args:
        values: (N, ...); its first axis holds `counts[b]` rows of every image b.
        share: Probability of 1.
        counts: Rows per image.
        per_row: One draw per row, shaped (N, 1, ...), instead of one per element.
    """
    shape = (values.shape[0],) + (1,) * (values.ndim - 1) if per_row else tuple(values.shape)
    mask = torch.empty(shape, dtype=values.dtype, device=values.device)
    own = generators(len(counts), values.device)
    if own is None:
        return mask.bernoulli_(share)
    for part, generator in zip(torch.split(mask, list(counts)), own, strict=True):
        part.bernoulli_(share, generator=generator)
    return mask


class ImageDropout(nn.Module):
    """Dropout whose mask depends on the image alone.

    Args:
        share: Of elements that are zeroed.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Drop elements of (N, ...) with `counts[b]` rows per image b; without counts a row is an image."""
        if not self.training or self.share == 0:
            return values
        keep = 1.0 - self.share
        mask = keep_mask(values, keep, counts if counts is not None else [1] * len(values))
        return values * mask / keep


class ImageDropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016) whose choice depends on the image alone: a row is an image."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, values: Tensor) -> Tensor:
        """Zero the whole residual of some images, scale up that of the others."""
        if not self.training or self.share == 0:
            return values
        keep = 1.0 - self.share
        return values * keep_mask(values, keep, [1] * len(values), per_row=True) / keep


def draw_per_image(model: nn.Module) -> nn.Module:
    """Replace timm's stochastic depth in a model, in place, by one that draws per image; it has no parameters."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child).__name__ == "DropPath":
                setattr(module, name, ImageDropPath(float(getattr(child, "drop_prob", None) or 0.0)))
    return model
