"""A folder of images with a table of tags: ``file_name,tags``, or any table of :mod:`.formats.tag_tables`.

The id of an image is its path below the image folder without the ending, ``/`` written as ``__``. Test
subsets need no tags, nor even a table: without one, every image of the folder belongs to the split.
"""

from __future__ import annotations

from stages.core.datasets.formats.file_names import image_folder, resolve_names
from stages.core.datasets.formats.tag_tables import TagRow, read_table_of_tags
from stages.core.datasets.image_files import images_below
from stages.core.datasets.layouts import Dataset, Subset
from stages.core.datasets.split import Listing, existing_folder
from stages.core.datasets.tagged import TaggedFile, TaggedFolder, listing_of, sort_tags
from stages.core.errors import SchemaError


def read_folder(dataset: Dataset, subset: Subset, *, train: bool) -> Listing:
    """List a subset, with tags on a train split.

    Raises:
        MissingInputError: the table or the image folder does not exist, or no class can be learned.
        SchemaError: a table that cannot be read, or a tag that is not declared.
    """
    return listing_of(dataset, subset, tagged_by_table, train=train)


def tagged_by_table(dataset: Dataset, subset: Subset) -> TaggedFolder:
    """Read the table of a subset and find its images."""
    if subset.index is None:
        folder = existing_folder(subset.image_folders)
        return TaggedFolder(folder, tuple(TaggedFile(name, ()) for name in images_below(folder)))
    table = read_table_of_tags(
        subset.index, tags_needed=subset.role == "train", classes=dataset.classes or ()
    )
    names = [row.file_name for row in table.rows]
    folder = image_folder(subset.image_folders, names)
    try:
        files, notes = resolve_names(names, folder)
    except SchemaError as error:
        raise SchemaError(error.what, where=subset.index, hint=error.hint) from error
    tagged = tuple(_tagged(row, files[row.file_name], dataset) for row in table.rows)
    return TaggedFolder(folder, tagged, notes=(*table.notes, *notes), where=subset.index)


def _tagged(row: TagRow, file_name: str, dataset: Dataset) -> TaggedFile:
    if row.tags is None:
        return TaggedFile(file_name, ())
    tags, negative = sort_tags(row.tags, dataset.negatives)
    reason = f"line {row.line} has no tag; write 'background' where an image shows none of the classes"
    return TaggedFile(file_name, tags, negative or row.none_set, untagged=reason)
