"""A split shows images and tags, withholds tags on test splits, and cannot return a box or a mask."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.errors import GroundTruthForbiddenError
from tests.datasets_builders import Obj, make_coco, make_folder, make_image, make_voc, make_xml

MAKERS: list[Callable[[Path], Path]] = [make_voc, make_coco, make_folder]
# Coordinates no id, size in bytes or tag of the tiny sets can equal by chance.
SECRET_BOX = (7919, 7927, 15991, 15999)
SECRET = {
    "train": {"a": [Obj("cat", SECRET_BOX)], "b": [Obj("dog", SECRET_BOX)]},
    "test": {"c": [Obj("cat", SECRET_BOX)]},
}


def walk(value: Any, seen: set[int]) -> Iterator[Any]:
    """Everything reachable from a value through containers and attributes, public or not."""
    if id(value) in seen:
        return
    seen.add(id(value))
    yield value
    if isinstance(value, dict):
        for pair in value.items():
            yield from walk(pair, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from walk(item, seen)
    elif not isinstance(value, Path) and hasattr(value, "__dict__"):
        yield from walk(vars(value), seen)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("subset", ["train", "test"])
def test_weak_split__holds_no_coordinates_and_no_path_to_them(
    tmp_path: Path, make: Callable[..., Path], subset: str
) -> None:
    make(tmp_path, "tiny", SECRET)
    split = open_split(f"tiny_{subset}", tmp_path)
    assert split.fingerprint
    assert split.id_of(split.coco_id(split.ids[0])) == split.ids[0]
    secrets = {*SECRET_BOX, *(v + 1 for v in SECRET_BOX), SECRET_BOX[2] - SECRET_BOX[0]}
    for state in (split, pickle.loads(pickle.dumps(split))):  # noqa: S301
        for value in walk(state, set()):
            assert not (isinstance(value, int | float) and value in secrets)
            text = str(value) if isinstance(value, str | Path) else ""
            assert not any(word in text for word in ("Annotations", "annotations", ".xml", ".json", ".csv"))
    assert str(SECRET_BOX[0]).encode() not in pickle.dumps(split)


def test_weak_split__its_face_is_what_the_contract_says() -> None:
    public = {name for name in dir(WeakSplit) if not name.startswith("_")}
    public |= {f.name for f in dataclasses.fields(WeakSplit) if not f.name.startswith("_")}
    assert public == {
        "name", "dataset", "subset", "role", "train_split", "classes", "category_ids", "ids", "problems", "notes",
        "has_tags", "file_name", "image_path", "tags", "coco_id", "id_of", "fingerprint", "content_fingerprint",
        "limited",
    }  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_tags__withheld_on_a_test_split(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path)
    train, test = open_split("tiny_train", tmp_path), open_split("tiny_test", tmp_path)
    assert (train.role, train.has_tags, train.train_split) == ("train", True, "tiny_train")
    assert (test.role, test.has_tags, test.train_split) == ("test", False, "tiny_train")
    assert [train.tags(i) for i in train.ids] == [(1, 2), (2,), (0,)]
    with pytest.raises(GroundTruthForbiddenError, match="tiny_test"):
        test.tags(test.ids[0])
    # Not withheld by a method only: the tags are not there.
    assert test._tags == ()


@pytest.mark.parametrize("make", MAKERS)
def test_weak_split__is_frozen_and_survives_pickling(tmp_path: Path, make: Callable[..., Path]) -> None:
    make(tmp_path)
    split = open_split("tiny_train", tmp_path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.role = "test"  # type: ignore[misc]
    again = pickle.loads(pickle.dumps(split))  # noqa: S301
    assert again == split
    assert again.fingerprint == split.fingerprint


@pytest.mark.parametrize("make", MAKERS)
def test_ids__sorted_with_files_and_numbers_that_go_both_ways(
    tmp_path: Path, make: Callable[..., Path]
) -> None:
    make(tmp_path)
    split = open_split("tiny_train", tmp_path)
    assert list(split.ids) == sorted(split.ids)
    for image_id in split.ids:
        assert split.image_path(image_id).is_file()
        assert split.image_path(image_id).name == split.file_name(image_id)
        assert split.id_of(split.coco_id(image_id)) == image_id
    with pytest.raises(KeyError):
        split.id_of(999)
    assert [split.coco_id(i) for i in split.ids] == ([10, 20, 30] if make is make_coco else [1, 2, 3])
    assert split.category_ids == ((3, 5, 7) if make is make_coco else (1, 2, 3))


def test_ids__coco_ids_sort_as_text(tmp_path: Path) -> None:
    scenes = {"train": {f"p{i}": [Obj("cat")] for i in range(11)}}
    make_coco(tmp_path, "tiny", scenes)
    split = open_split("tiny_train", tmp_path)
    assert split.ids[:3] == ("10", "100", "110")
    assert split.coco_id("100") == 100


def test_limited__first_images_with_their_numbers_and_the_problems_before_them(tmp_path: Path) -> None:
    hard = [Obj("cat", difficult=True)]
    scenes = {"train": {"a": [Obj("cat")], "b": hard, "c": [Obj("cat")], "d": hard, "e": [Obj("dog")]}}
    make_voc(tmp_path, "tiny", scenes)
    split = open_split("tiny_train", tmp_path)
    assert split.ids == ("a", "c", "e")
    two = split.limited(2)
    assert (two.ids, [p.id for p in two.problems]) == (("a", "c"), ["b"])
    assert [two.coco_id(i) for i in two.ids] == [1, 3]
    assert two.tags("c") == split.tags("c")
    assert split.limited(99) == split
    assert two.fingerprint != split.fingerprint


def test_fingerprint__changes_with_tags_files_and_ids_but_not_with_the_place(tmp_path: Path) -> None:
    one = make_voc(tmp_path / "one")
    make_voc(tmp_path / "two")
    base = open_split("tiny_train", tmp_path / "one").fingerprint
    assert base == open_split("tiny_train", tmp_path / "two").fingerprint
    seen = {base}
    make_xml(one / "Annotations" / "img_1.xml", [Obj("cat")])
    seen.add(open_split("tiny_train", tmp_path / "one").fingerprint)
    make_image(one / "JPEGImages" / "img_1.jpg", seed=5, width=60)
    seen.add(open_split("tiny_train", tmp_path / "one").fingerprint)
    (one / "JPEGImages" / "img_2.jpg").unlink()
    seen.add(open_split("tiny_train", tmp_path / "one").fingerprint)
    assert len(seen) == 4
