"""What happens to a training image of the classifier: random crop and flip, RandAugment, random erasing.

RandAugment (Cubuk et al., 2020) and random erasing (Zhong et al., 2020) are timm's, as published
(docs/method.md, section 2.5).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional as F

from stages.cam.config import CamConfig
from stages.core.errors import ConfigError
from stages.core.runtime.seeding import global_generators

ASPECT: Final = 0.15
"""Largest factor on rows and its inverse on columns, in logarithms: aspect ratios of 3/4 to 4/3."""
CROP_TRIALS: Final = 10
"""Draws of a crop that fits into the image, as in torchvision and timm."""


class CropAugmentation:
    """Turns an image into a training crop; everything random comes from the generator that is given.

    Raises:
        ConfigError: `randaugment` is no policy that timm understands.
    """

    def __init__(self, config: CamConfig) -> None:
        self.config = config
        self.operations = None
        if config.randaugment:
            grey = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)
            fill = {"translate_const": int(0.45 * config.train_crop_size), "img_mean": grey}
            try:
                self.operations = rand_augment_transform(config.randaugment, fill)
            except (AssertionError, ValueError, KeyError) as error:
                raise ConfigError(
                    f"'{config.randaugment}' is no policy ({error})",
                    where="randaugment",
                    hint="use e.g. rand-m9-mstd0.5-inc1",
                ) from error
        self.eraser = RandomErasing(config.random_erase_prob, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]

    def __call__(self, pixels_HW3: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        """Return a crop [1, 3, S, S] in [0, 1]; erased parts hold noise with ImageNet's mean and deviation."""
        crop = random_crop(pixels_HW3, self.config, rng)
        if self.operations is None and not self.config.random_erase_prob:
            return crop
        with global_generators(int(rng.integers(2**62))):
            if self.operations is not None:
                crop = self._operate(crop)
            if self.config.random_erase_prob:
                mean, std = (
                    torch.tensor(x)[:, None, None] for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
                )
                crop = (self.eraser((crop[0] - mean) / std) * std + mean)[None]
        return crop

    def _operate(self, crop: Tensor) -> Tensor:
        assert self.operations is not None
        image = Image.fromarray((crop[0].permute(1, 2, 0) * 255).round().byte().numpy())
        changed = np.asarray(self.operations(image))
        return torch.from_numpy(changed.copy()).permute(2, 0, 1)[None].float() / 255.0


def random_crop(pixels_HW3: NDArray[np.uint8], config: CamConfig, rng: np.random.Generator) -> Tensor:
    """Return a random part of the image, resized to the training square and perhaps mirrored, [1, 3, S, S]."""
    draw = _square_part if config.crop_aspect == "square" else _image_part
    height, width = pixels_HW3.shape[:2]
    rows, columns = draw(height, width, config.min_crop_area_fraction, rng)
    part = torch.from_numpy(pixels_HW3[rows, columns].copy()).permute(2, 0, 1)[None]
    size = (config.train_crop_size, config.train_crop_size)
    crop = F.interpolate(
        part.float() / 255.0, size, mode=config.train_interpolation, antialias=True, align_corners=False
    ).clamp(0, 1)
    return crop.flip(-1) if rng.random() < config.hflip_prob else crop


def _image_part(height: int, width: int, least: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a part with about the image's own aspect ratio; `least` of its area at least."""
    side, aspect = math.sqrt(rng.uniform(least, 1.0)), math.exp(rng.uniform(-ASPECT, ASPECT))
    rows = max(1, min(height, round(height * side * aspect)))
    columns = max(1, min(width, round(width * side / aspect)))
    return _placed(rows, height, rng), _placed(columns, width, rng)


def _square_part(height: int, width: int, least: float, rng: np.random.Generator) -> tuple[slice, slice]:
    """The same of a nearly square part, as `RandomResizedCrop` of torchvision and timm draws it."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for _ in range(CROP_TRIALS):
        area, ratio = height * width * rng.uniform(least, 1.0), math.exp(rng.uniform(low, high))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            return _placed(rows, height, rng), _placed(columns, width, rng)
    rows, columns = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def _placed(length: int, of: int, rng: np.random.Generator) -> slice:
    start = int(rng.integers(of - length + 1))
    return slice(start, start + length)
