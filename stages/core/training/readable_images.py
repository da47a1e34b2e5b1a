"""Training images that can be read, each with a stand-in, so that a batch never shrinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stages.core.datasets.images import load_image
from stages.core.datasets.split import WeakSplit
from stages.core.errors import ImageError, InputError
from stages.core.spec import FailureLog

T = TypeVar("T")


class ReadableImages:
    """Reads images of a split; the next one of the list stands in for one that cannot be read.

    Args:
        split: Knows where images lie.
        ids: The training images, in the order in which they stand in for one another.
        failures: Told of every image that cannot be read, once.
    """

    def __init__(self, split: WeakSplit, ids: Sequence[str], failures: FailureLog) -> None:
        self.split, self.ids, self.failures = split, list(ids), failures
        self._position = {image_id: i for i, image_id in enumerate(self.ids)}

    def read(self, wanted: str) -> tuple[str, NDArray[np.uint8]]:
        """The wanted image, or the next that can be read: its id and RGB pixels (H, W, 3).

        Raises:
            InputError: no image of the list can be read.
        """
        return self.first(wanted, lambda image_id: load_image(self.split.image_path(image_id)))

    def first(self, wanted: str, make: Callable[[str], T]) -> tuple[str, T]:
        """What `make` gives for the wanted image, or for the next for which it raises no ImageError; its id first.

        Raises:
            InputError: there is no such image in the list.
        """
        start = self._position[wanted]
        for offset in range(len(self.ids)):
            image_id = self.ids[(start + offset) % len(self.ids)]
            if image_id in self.failures.entries:
                continue
            try:
                return image_id, make(image_id)
            except ImageError as error:
                # In one line, as the part of a stage that applies the model names it.
                self.failures.record(image_id, str(error).replace("\n", " "))
        raise InputError("none of the training images can be read", where=self.split.name)
