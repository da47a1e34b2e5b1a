"""``weaksam data init``: write what is recognised in a folder into ``dataset.yaml``, with a validation split."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from stages.core.artifacts.files import write_text
from stages.core.datasets.catalog import SplitSource, find_dataset, open_split, read_listing
from stages.core.datasets.declared import FILE_NAME
from stages.core.datasets.layouts import Dataset
from stages.core.datasets.split import Listing, WeakSplit
from stages.core.datasets.subsets import train_subset_for
from stages.core.errors import MissingInputError, OutputExistsError, UsageError

LISTS = "splits"
"""Folder of the lists of ids."""


def declare_dataset(
    name: str,
    data_root: Path,
    *,
    val_fraction: float = 0.0,
    classes: Sequence[str] = (),
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the ``dataset.yaml`` of a data set that can be recognised without one.

    Args:
        name: Its name.
        data_root: Folder of data sets.
        val_fraction: Part of the train images that becomes the test split ``<name>_val``, in [0, 1).
        classes: Restrict it to these classes.
        seed: Of the choice of these images.
        overwrite: Replace a ``dataset.yaml`` that is there.

    Returns:
        The file.

    Raises:
        OutputExistsError: there is one already.
        MissingInputError: nothing is recognised, or nothing trains.
        UsageError: there is a subset ``val`` already, or too few images.
    """
    path = data_root / name / FILE_NAME
    if path.is_file() and not overwrite:
        raise OutputExistsError("there is one already", where=path, hint="give --overwrite to replace it")
    dataset = find_dataset(name, data_root, declared=False)
    if dataset is None:
        raise MissingInputError(
            "no layout that is known is recognised here",
            where=data_root / name,
            hint=f"`weaksam data check {data_root / name}` says what is there",
        )
    subsets = {s: _entry(name, s, dataset) for s, own in dataset.subsets.items() if own.role is not None}
    train = train_subset_for("test", [s for s, own in dataset.subsets.items() if own.role == "train"])
    if train is None:
        raise MissingInputError("no subset trains", where=dataset.root, hint="name one train")
    document: dict[str, Any] = {"format": dataset.layout}
    document["classes"] = list(_listing(name, train, dataset).classes)
    if classes:
        document["restrict_to"] = list(classes)
    if dataset.layout == "voc" and dataset.annotations is not None:
        document["annotations"] = _relative(dataset.annotations, dataset.root)
    if val_fraction > 0:
        if "val" in subsets:
            raise UsageError("the data set has a subset 'val' already", where="--val", hint="leave --val out")
        chosen = _write_lists(
            open_split(f"{name}_{train}", data_root), dataset.root, train, val_fraction, seed
        )
        subsets["val"] = subsets[train] | {"role": "test", "ids": chosen["val"], "train_split": train}
        subsets[train] = subsets[train] | {"ids": chosen[train]}
    write_text(path, yaml.safe_dump(document | {"subsets": subsets}, sort_keys=False, allow_unicode=True))
    return path


def _listing(name: str, subset: str, dataset: Dataset) -> Listing:
    own = dataset.subsets[subset]
    assert own.role is not None
    return read_listing(
        SplitSource(f"{name}_{subset}", subset, own.role, dataset, own), tags=own.role == "train"
    )


def _entry(name: str, subset: str, dataset: Dataset) -> dict[str, Any]:
    own = dataset.subsets[subset]
    entry: dict[str, Any] = {"role": own.role}
    if own.index is not None:
        entry["file"] = _relative(own.index, dataset.root)
    entry["images"] = _relative(_listing(name, subset, dataset).image_folder, dataset.root)
    if own.annotations is not None:
        entry["annotations"] = _relative(own.annotations, dataset.root)
    return entry


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _write_lists(split: WeakSplit, root: Path, train: str, fraction: float, seed: int) -> dict[str, str]:
    """Write which images train and which are held out; subset -> list, relative to the data set."""
    held_out = stratified({i: split.tags(i) for i in split.ids}, fraction, seed)
    if not held_out or len(held_out) == len(split.ids):
        raise UsageError(
            f"{fraction:.0%} of {len(split.ids)} images leaves nothing on one side",
            where="--val",
            hint="try 20%",
        )
    found = {}
    for name, ids in ((train, sorted(set(split.ids) - held_out)), ("val", sorted(held_out))):
        write_text(root / LISTS / f"{name}.txt", "".join(f"{image_id}\n" for image_id in ids))
        found[name] = f"{LISTS}/{name}.txt"
    return found


def stratified(tags: Mapping[str, tuple[int, ...]], fraction: float, seed: int) -> set[str]:
    """Choose a part of the images that holds the same part of every class, as nearly as tags in common allow.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): images of the rarest class are dealt first, each
    to the side that still lacks more of it; negatives come last.

    Args:
        tags: Image id -> its classes.
        fraction: Part that is chosen, in (0, 1).
        seed: Of the order among equal images.
    """
    ids = sorted(tags)
    order = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    wanted = {c: fraction * count for c, count in Counter(c for own in tags.values() for c in own).items()}
    total = fraction * len(ids)
    chosen: set[str] = set()
    left = list(order)
    while left:
        counts = Counter(c for i in left for c in tags[i])
        rarest = min(counts, key=lambda c: (counts[c], c), default=None)
        batch = [i for i in left if rarest is None or rarest in tags[i]]
        for image_id in batch:
            need = total if rarest is None else wanted[rarest]
            if need >= 0.5:
                chosen.add(image_id)
                total -= 1
                for c in tags[image_id]:
                    wanted[c] -= 1
        dealt = set(batch)
        left = [i for i in left if i not in dealt]
    return chosen
