"""Test-time augmentation: the views of an image, which of them memory holds, and one answer made of many.

Shared by every detector. The detector of `wsod` scores the same proposals in every view, so its answers are averaged
box by box (docs/method.md, section 5.9); detectors that find their own boxes are merged by a per-class suppression
(section 7.6).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from stages.core.detectors.checkpoints import AnyDetector
from stages.core.errors import EnvironmentFault
from stages.core.structures.instances import Instances

T = TypeVar("T")
SET_NMS_IOU: Final = 0.6
"""Suppression across views for detectors that need none within one (DINO's; docs/method.md, section 7.6)."""


@dataclass(frozen=True)
class View:
    """One look at an image: resized to a short side, perhaps mirrored."""

    size: int
    """Short side, pixels."""
    flip: bool = False


def views(short_side: int, sizes: Sequence[int], enabled: bool, hflip: bool = True) -> tuple[View, ...]:
    """The plain view, or with augmentation every distinct size, plain and, with `hflip`, mirrored."""
    if not enabled:
        return (View(short_side),)
    return tuple(
        View(size, flip)
        for size in sorted({short_side, *sizes})
        for flip in ((False, True) if hflip else (False,))
    )


def mirror_boxes(boxes_xyxy: Tensor, width: float) -> Tensor:
    """Boxes (..., 4) of the horizontally mirrored image; applying it twice gives them back."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(-1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=-1)


def run_views(planned: Sequence[View], device: str, run: Callable[[View], T]) -> list[T]:
    """Run every view of one image that memory can hold.

    After a view that it cannot hold, larger ones are not tried; a warning names the size. The next image starts over:
    it may be smaller, and the results of an image do not depend on those before it.

    Args:
        planned: Views, smallest first.
        device: Where they are run.
        run: Outputs of one view.

    Returns:
        Outputs of the views that were run; empty if memory holds none.
    """
    outputs: list[T] = []
    for view in planned:
        try:
            outputs.append(run(view))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if device.startswith("cuda"):
                torch.cuda.empty_cache()
            _warn_of_left_out_views(view.size)
            break
    return outputs


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch means that memory is too small: CUDA has a class for it, the CPU a message."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@functools.cache
def _warn_of_left_out_views(size: int) -> None:
    """Warn once per size and process."""
    logging.getLogger("weaksam").warning(
        "detect: memory cannot hold views of %d pixels of some images; these and larger views are left out there, and"
        " the metrics are not those of all views",
        size,
    )


def detect_in_views(model: AnyDetector, image_3HW: Tensor, sizes: Sequence[int], device: str) -> Instances:
    """Detections of one image from several sizes, each plain and mirrored, merged.

    Every view is suppressed by itself and mapped back; then all go through one suppression per class, at the
    detector's own IoU, and the best `detections_per_image` stay. Every view is resized from the image itself, not from
    the plain view, and larger ones may be longer by as much as they are higher.

    Args:
        model: in evaluation mode; its own test size is one of the views.
        image_3HW: RGB in [0, 1].
        sizes: short sides, pixels.
        device: where the model is.

    Returns:
        by descending score, in the image's own pixels.

    Raises:
        EnvironmentFault: memory holds none of the views.
    """
    spec = model.spec
    width = image_3HW.shape[-1]

    def see(view: View) -> Instances:
        with resized(model, view.size):
            output = model([image_3HW.flip(-1) if view.flip else image_3HW])[0]
        found = Instances.from_torchvision(output)
        if not view.flip:
            return found
        masks = None if found.masks is None else found.masks.flip(-1)
        return replace(found, boxes_xyxy=mirror_boxes(found.boxes_xyxy, width), masks=masks)

    seen = run_views(views(spec.test_short_side, sizes, enabled=True), device, see)
    if not seen:
        raise EnvironmentFault(
            f"memory cannot hold an image of {spec.test_short_side} pixels",
            where="test_short_side",
            hint="use a smaller test_short_side, another --device, or --precision bf16",
        )
    found = Instances.cat(seen)
    iou = spec.nms_thresh if spec.nms_thresh < 1 else SET_NMS_IOU
    kept = batched_nms(found.boxes_xyxy.float(), found.scores.float(), found.classes, iou)
    return found[kept[: spec.detections_per_image]]


@contextmanager
def resized(model: AnyDetector, size: int) -> Iterator[None]:
    """Let a detector see its images at another short side."""
    transform, spec = model.transform, model.spec
    before = transform.min_size, transform.max_size
    transform.min_size = (size,)
    transform.max_size = max(spec.max_size, round(spec.max_size * size / spec.test_short_side))
    try:
        yield
    finally:
        transform.min_size, transform.max_size = before
