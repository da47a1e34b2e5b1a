"""Parts of a listing: some of its images, some of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stages.core.datasets.split import ListedImage, Listing
from stages.core.errors import MissingInputError, SchemaError, UsageError, did_you_mean


def chosen(listing: Listing, ids_file: Path) -> Listing:
    """Keep the images whose ids a text file lists, one per line; integer ids stay what they are.

    Raises:
        MissingInputError: no such file.
        SchemaError: it lists an image that the data set does not have.
    """
    try:
        lines = ids_file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise MissingInputError("the list of image ids does not exist", where=ids_file) from error
    wanted = {line.strip() for line in lines if line.strip()}
    known = {image.id for image in listing.images}
    for image_id in sorted(wanted - known)[:1]:
        raise SchemaError(
            f"lists '{image_id}', which the data set does not have ({len(wanted - known)} such)",
            where=ids_file,
            hint="write the lists again: weaksam data init --val 20% --overwrite",
        )
    return replace(listing, images=tuple(image for image in listing.images if image.id in wanted))


def restricted(listing: Listing, classes: Sequence[str], root: Path) -> Listing:
    """Restrict a listing to some classes, in the order of the data set.

    What else the images show is then unknown; one that shows none of the classes is a negative of them.

    Raises:
        UsageError: a class that the data set does not have, or none at all.
    """
    for name in classes:
        if name not in listing.classes:
            raise UsageError(
                f"the data set {root} has no class '{name}'",
                where="--classes",
                hint=did_you_mean(name, listing.classes),
            )
    kept = [i for i, name in enumerate(listing.classes) if name in classes]
    if not kept:
        raise UsageError("no class is named", where="--classes", hint="write dog,cat")
    position = {old: new for new, old in enumerate(kept)}
    return replace(
        listing,
        classes=tuple(listing.classes[i] for i in kept),
        category_ids=tuple(listing.category_ids[i] for i in kept),
        images=tuple(_of_classes(image, position) for image in listing.images),
    )


def _of_classes(image: ListedImage, position: dict[int, int]) -> ListedImage:
    if not image.tags:
        return image
    tags = tuple(position[tag] for tag in image.tags if tag in position)
    return replace(image, tags=tags, negative=not tags)
