"""The catalog: from a split's name ``<dataset>_<subset>`` to its images and tags.

Looked for, in this order: the embedded ``shapes`` set; ``<data>/<dataset>/dataset.yaml``; the official folders of
voc07, voc12, coco14 and coco17; the layouts of :mod:`stages.core.datasets.formats.scanning`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stages.core.datasets.coco import read_coco
from stages.core.datasets.declared import FILE_NAME, read_declared
from stages.core.datasets.folder import read_folder
from stages.core.datasets.formats.class_folders import read_class_folders
from stages.core.datasets.formats.label_studio import read_label_studio
from stages.core.datasets.formats.labelme import read_labelme
from stages.core.datasets.formats.scanning import scan, scan_official
from stages.core.datasets.formats.yolo import read_yolo
from stages.core.datasets.layouts import OFFICIAL, Dataset, Layout, Subset
from stages.core.datasets.listings import chosen, restricted
from stages.core.datasets.split import Listing, Role, WeakSplit, assemble
from stages.core.datasets.subsets import train_subset_for
from stages.core.datasets.voc import read_voc
from stages.core.errors import ConfigError, MissingInputError, UsageError, did_you_mean

READERS: dict[Layout, Callable[..., Listing]] = {
    "voc": read_voc,
    "coco": read_coco,
    "folder": read_folder,
    "class-folders": read_class_folders,
    "yolo": read_yolo,
    "label-studio": read_label_studio,
    "labelme": read_labelme,
}
"""Layout -> its reader of images and tags."""
EMBEDDED = ("shapes",)
PUBLISHED_TRAIN = {"voc12": "trainval"}
"""Train subset that schedules are published for and that contains a test subset (val), which is then none."""
DATA_VARIABLE = "WEAKSAM_DATA"
DEFAULT_DATA_ROOT = Path("data")


@dataclass(frozen=True)
class SplitSource:
    """Where a split lies on disk. For the readers of tags and of ground truth; stages get a WeakSplit."""

    name: str
    subset_name: str
    role: Role
    dataset: Dataset
    subset: Subset

    @property
    def restricted(self) -> bool:
        """Whether the data set may show other classes than those of the split."""
        return self.dataset.restrict_to is not None


def data_root(given: Path | None = None) -> Path:
    """The data folder: what was given, else ``$WEAKSAM_DATA``, else ``data``."""
    if given is not None:
        return given
    return Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA_ROOT)


def open_split(
    name: str,
    data_root: Path,
    *,
    layout: Layout | None = None,
    difficult_tags: bool = False,
    classes: Sequence[str] = (),
) -> WeakSplit:
    """Open a split by name.

    Args:
        name: ``<dataset>_<subset>``.
        data_root: Folder of data sets.
        layout: Read this layout where a folder holds several (default: dataset.yaml's, else VOC, COCO, CSV).
        difficult_tags: VOC layout: let objects marked ``difficult`` give tags, too.
        classes: Restrict the data set to these classes; none = those that it declares, or all.

    Raises:
        UsageError: the name has no ``_``, or the data set has no such class.
        MissingInputError: no such data set, subset, file or folder; lists close matches or what there is.
        ConfigError: a bad ``dataset.yaml``, or a subset whose role nothing tells.
        SchemaError: bad annotations.
    """
    source = locate(name, data_root, layout, classes)
    train_split = name
    if source.role == "test":
        train = source.subset.train_subset or train_subset_for(source.subset_name, _trains(source.dataset))
        train_split = f"{source.dataset.name}_{train or 'train'}"
    listing = read_listing(source, tags=source.role == "train", difficult_tags=difficult_tags)
    if source.dataset.restrict_to is not None:
        listing = restricted(listing, source.dataset.restrict_to, source.dataset.root)
    return assemble(name, source.subset_name, source.role, train_split, listing)


def read_listing(source: SplitSource, *, tags: bool, difficult_tags: bool = False) -> Listing:
    """List the images of a split with the reader of its layout."""
    layout = source.dataset.layout
    options = {"difficult_tags": difficult_tags} if layout == "voc" else {}
    listing = READERS[layout](source.dataset, source.subset, train=tags, **options)
    return listing if source.subset.ids is None else chosen(listing, source.subset.ids)


def locate(
    name: str, data_root: Path, layout: Layout | None = None, classes: Sequence[str] = ()
) -> SplitSource:
    """Find a split on disk without reading it; arguments as of :func:`open_split`.

    Raises:
        UsageError, MissingInputError, ConfigError: as :func:`open_split`.
    """
    seen: Dataset | None = None
    for dataset_name, subset_name in _cuts(name):
        dataset = find_dataset(dataset_name, data_root, layout)
        if dataset is None:
            continue
        subset = dataset.subsets.get(subset_name)
        if subset is not None:
            if classes:
                dataset = replace(dataset, restrict_to=tuple(classes))
            return SplitSource(name, subset_name, _role(name, dataset, subset), dataset, subset)
        seen = seen or dataset
    if seen is not None:
        options = [f"{seen.name}_{subset}" for subset in seen.subsets]
        raise MissingInputError(
            f"data set '{seen.name}' has no split '{name}'",
            where=seen.root,
            hint=did_you_mean(name, options),
        )
    raise _nothing_found(name, data_root, layout)


def list_splits(data_root: Path) -> tuple[str, ...]:
    """Names of all splits under a data folder, sorted; the embedded ones always.

    Data sets whose ``dataset.yaml`` is bad are passed over (`dataset_problems` names them): this list serves the
    messages of other errors.
    """
    names = {"shapes_train", "shapes_val", "shapes_test"}
    for _, dataset, _ in _datasets(data_root):
        if dataset is not None:
            names.update(f"{dataset.name}_{s}" for s, own in dataset.subsets.items() if own.role is not None)
    return tuple(sorted(names))


def list_datasets(data_root: Path) -> tuple[str, ...]:
    """Names of the data sets under a data folder, sorted; also of those whose ``dataset.yaml`` is bad."""
    return tuple(name for name, _, _ in _datasets(data_root))


def dataset_problems(data_root: Path) -> tuple[str, ...]:
    """What is wrong with the ``dataset.yaml`` of folders whose splits are therefore unknown, one message each."""
    return tuple(problem for _, _, problem in _datasets(data_root) if problem)


def main_splits(dataset: str, data_root: Path) -> tuple[str, str]:
    """The train and the test split that a run on a whole data set uses.

    The test subset is the first of test, minival and val that exists, else any other test subset; the train
    split is the one that goes with it. VOC12 is trained on trainval, so that its test subset is test or none.

    Returns:
        names of both splits; the second is empty if the data set has no test subset.

    Raises:
        MissingInputError: no such data set, or nothing in it to train on.
    """
    found = find_dataset(dataset, data_root, None)
    if found is None:
        names = [source.name for _, source, _ in _datasets(data_root) if source is not None]
        raise MissingInputError(
            f"no data set is called '{dataset}'",
            where=data_root,
            hint=did_you_mean(dataset, [*EMBEDDED, *names]),
        )
    tests = [name for name, subset in found.subsets.items() if subset.role == "test"]
    if PUBLISHED_TRAIN.get(dataset) in found.subsets:
        tests = [name for name in tests if name == "test"]
    preferred = [
        *[n for kind in ("test", "minival", "val") for n in sorted(tests) if n.startswith(kind)],
        *sorted(tests),
    ]
    test = preferred[0] if preferred else ""
    declared = found.subsets[test].train_subset if test else None
    train = declared or train_subset_for(test or "test", _trains(found))
    if train is None:
        raise MissingInputError(
            f"data set '{dataset}' has no train split",
            where=found.root,
            hint="name a subset train*, or see dataset.yaml",
        )
    return f"{dataset}_{train}", f"{dataset}_{test}" if test else ""


def _cuts(name: str) -> list[tuple[str, str]]:
    """Every way to cut a name at an underscore, the last underscore first."""
    words = name.split("_")
    cuts = [("_".join(words[:i]), "_".join(words[i:])) for i in range(len(words) - 1, 0, -1)]
    cuts = [(dataset, subset) for dataset, subset in cuts if dataset and subset]
    if not cuts or "/" in name or "\\" in name:
        raise UsageError(
            f"'{name}' is not the name of a split",
            where="--split",
            hint="write <dataset>_<subset>: voc07_trainval",
        )
    return cuts


def find_dataset(
    name: str, data_root: Path, layout: Layout | None = None, *, declared: bool = True
) -> Dataset | None:
    """Find a data set by name; None if there is none that is known.

    Args:
        name: Name of its folder, or of an official or embedded set.
        data_root: Folder of data sets.
        layout: Look for this layout only.
        declared: Whether a ``dataset.yaml`` counts.

    Raises:
        ConfigError: a bad ``dataset.yaml``.
    """
    if name in EMBEDDED:
        # Drawing needs OpenCV; the other data sets should not pay for that.
        from stages.core.datasets.shapes.dataset import ensure_shapes

        ensure_shapes(data_root)
    return _found(name, data_root, layout, declared=declared)


def _found(
    name: str, data_root: Path, layout: Layout | None = None, *, declared: bool = True
) -> Dataset | None:
    root = data_root / name
    return (
        (read_declared(name, root, layout) if declared else None)
        or (scan_official(name, data_root, layout) if name in OFFICIAL else None)
        or scan(name, root, layout)
    )


def _trains(dataset: Dataset) -> list[str]:
    return [name for name, subset in dataset.subsets.items() if subset.role == "train"]


def _role(name: str, dataset: Dataset, subset: Subset) -> Role:
    if subset.role is None:
        raise ConfigError(
            f"nothing says whether '{name}' is a train or a test split",
            where=dataset.root / FILE_NAME,
            hint="name it train*, val* or test*, or write its role into dataset.yaml",
        )
    return subset.role


def _datasets(data_root: Path) -> Iterator[tuple[str, Dataset | None, str]]:
    """Every data set under a folder, or what is wrong with its description."""
    folders = sorted(p.name for p in data_root.iterdir() if p.is_dir()) if data_root.is_dir() else []
    for name in sorted({*folders, *OFFICIAL}):
        try:
            dataset = _found(name, data_root)
        except ConfigError as error:
            yield name, None, str(error)
            continue
        if dataset is not None:
            yield name, dataset, ""


def _nothing_found(name: str, data_root: Path, layout: Layout | None) -> MissingInputError:
    if not data_root.is_dir():
        return MissingInputError(
            f"the data folder does not exist, so split '{name}' cannot be found",
            where=data_root,
            hint=f"set ${DATA_VARIABLE} or give --data; shapes_train and shapes_test need no data",
        )
    kind = "a" if layout is None else f"a {layout}-layout"
    for dataset_name, _ in _cuts(name):
        if (data_root / dataset_name).is_dir():
            return MissingInputError(
                f"this folder is not {kind} data set that is understood, so there is no split '{name}'",
                where=data_root / dataset_name,
                hint=f"`weaksam data check {data_root / dataset_name}` says what is there, and what is expected",
            )
    return MissingInputError(
        f"there is no split '{name}'", where=data_root, hint=did_you_mean(name, list_splits(data_root))
    )
