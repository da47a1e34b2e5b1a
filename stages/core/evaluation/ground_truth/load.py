"""From a split's name to its true boxes and masks. Image sizes come from the image files, never from annotations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from stages.core.datasets.catalog import locate, open_split
from stages.core.datasets.images import image_size
from stages.core.datasets.layouts import Layout
from stages.core.errors import ImageError, MissingInputError
from stages.core.evaluation.ground_truth.coco import CocoGroundTruthReader
from stages.core.evaluation.ground_truth.types import GroundTruth, GroundTruthProblem, ImageGroundTruth
from stages.core.evaluation.ground_truth.voc import VocGroundTruthReader

READERS: dict[str, type[VocGroundTruthReader] | type[CocoGroundTruthReader]] = {
    "voc": VocGroundTruthReader,
    "coco": CocoGroundTruthReader,
}
"""Layout -> its reader of boxes and masks; the others have tags only."""


def load_ground_truth(
    split_name: str,
    data_root: Path,
    *,
    layout: Layout | None = None,
    ids: Collection[str] | None = None,
    classes: Sequence[str] = (),
) -> GroundTruth:
    """Read the true objects of a split's images.

    Args:
        split_name: ``<dataset>_<subset>``, a train or a test split.
        data_root: Folder of data sets.
        layout: Read this layout where a folder holds several.
        ids: Only these images of the split; default all of ``open_split(...).ids``.
        classes: Restrict the data set to these classes; objects of others are left out.

    Returns:
        The ground truth. Images whose file or annotation is missing or unreadable are in ``problems`` instead.

    Raises:
        MissingInputError: no such split, or one whose layout has tags only.
        SchemaError: annotations that cannot be right; the message names file and object. A minority of objects that
            are damaged is left out instead, see ``ImageGroundTruth.flaws``.
        UsageError, ConfigError: as ``open_split``.
    """
    source = locate(split_name, data_root, layout, classes)
    if source.dataset.layout not in READERS:
        raise MissingInputError(
            f"split {split_name} has image tags only, no boxes or masks to evaluate against",
            where=source.subset.index or source.dataset.root,
            hint="evaluate on a split in VOC or COCO layout",
        )
    split = open_split(split_name, data_root, layout=layout, classes=classes)
    reader = READERS[source.dataset.layout](source, split)
    images: dict[str, ImageGroundTruth] = {}
    problems: list[GroundTruthProblem] = []
    for image_id in split.ids:
        if ids is not None and image_id not in ids:
            continue
        try:
            images[image_id] = reader.read(image_id, *image_size(split.image_path(image_id)))
        except (ImageError, FileNotFoundError) as error:
            reason = (
                error.what if isinstance(error, ImageError) else f"annotation {error.filename} does not exist"
            )
            problems.append(GroundTruthProblem(image_id, reason))
    _check_flaws(images)
    return GroundTruth(split_name, split.classes, split.category_ids, images, tuple(problems))


def _check_flaws(images: dict[str, ImageGroundTruth]) -> None:
    """Confine a damaged object to itself, but not a file most of which is damaged.

    Raises:
        SchemaError: the first flaw, where half of the objects or more have one.
    """
    flaws = [flaw for image in images.values() for flaw in image.flaws]
    objects = sum(len(image) + image.left_out for image in images.values())
    if flaws and 2 * len(flaws) >= objects:
        raise flaws[0]
