"""Zero-padding of images to whole cells of a backbone's coarsest map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(images: Tensor, multiple: int = 32) -> Tensor:
    """Zero-pad images (..., H, W) at right and bottom until both sides are multiples of `multiple` pixels.

    Zeros are the mean colour of normalised images: pad after normalisation.
    """
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % multiple, 0, -height % multiple))
