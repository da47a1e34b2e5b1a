"""Which two splits a run on a whole data set uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.datasets.catalog import main_splits
from stages.core.errors import MissingInputError


def voc_lists(root: Path, *subsets: str, name: str = "toys") -> None:
    for subset in subsets:
        path = root / name / "ImageSets" / "Main" / f"{subset}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a\n")
    (root / name / "Annotations").mkdir(exist_ok=True)
    (root / name / "JPEGImages").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (("train", "val", "test"), ("toys_train", "toys_test")),
        (("trainval", "train", "val", "test"), ("toys_trainval", "toys_test")),
        (("train", "val"), ("toys_train", "toys_val")),
        (("train2017",), ("toys_train2017", "")),
    ],
)
def test_main_splits__prefers_test(
    tmp_path: Path, subsets: tuple[str, ...], expected: tuple[str, str]
) -> None:
    voc_lists(tmp_path, *subsets)
    assert main_splits("toys", tmp_path) == expected


@pytest.mark.parametrize(
    ("subsets", "expected"),
    [
        (("trainval", "train", "val"), ("voc12_trainval", "")),  # val is part of what it is trained on
        (("trainval", "train", "val", "test"), ("voc12_trainval", "voc12_test")),
        (("train", "val"), ("voc12_train", "voc12_val")),
    ],
)
def test_main_splits__voc12_is_trained_on_trainval(
    tmp_path: Path, subsets: tuple[str, ...], expected: tuple[str, str]
) -> None:
    voc_lists(tmp_path, *subsets, name="voc12")
    assert main_splits("voc12", tmp_path) == expected


def test_main_splits__nothing_there(tmp_path: Path) -> None:
    voc_lists(tmp_path, "test")
    with pytest.raises(MissingInputError, match="no train split"):
        main_splits("toys", tmp_path)
    with pytest.raises(MissingInputError, match="did you mean 'toys'"):
        main_splits("toyz", tmp_path)
