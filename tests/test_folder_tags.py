"""Images with a CSV of tags: the smallest data set a user can bring."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.datasets.catalog import open_split
from stages.core.errors import InputError, MissingInputError, SchemaError
from tests.datasets_builders import make_folder, make_image


def small_set(
    root: Path, csv_text: str, *, files: tuple[str, ...] = ("a.jpg", "b.jpg"), yaml: str = ""
) -> Path:
    folder = root / "tiny"
    for i, name in enumerate(files):
        make_image(folder / "images" / name, i)
    (folder / "train.csv").write_bytes(csv_text.encode())
    if yaml:
        (folder / "dataset.yaml").write_text(yaml)
    return folder


@pytest.mark.parametrize("yaml", [True, False])
def test_tags__with_and_without_dataset_yaml(tmp_path: Path, yaml: bool) -> None:
    make_folder(tmp_path, yaml=yaml)
    split = open_split("tiny_train", tmp_path)
    assert (split.classes, split.category_ids) == (("bird", "cat", "dog"), (1, 2, 3))
    assert [split.tags(i) for i in split.ids] == [(1, 2), (2,), (0,)]
    # Tags of a test CSV are neither shown nor used for the class list.
    test = open_split("tiny_test", tmp_path)
    assert (test.classes, test.has_tags) == (split.classes, False)


@pytest.mark.parametrize(
    ("csv_text", "tags"),
    [
        ("file_name,tags\na.jpg,cat;dog\nb.jpg,dog\n", [("cat", "dog"), ("dog",)]),
        ("file_name,tags\na.jpg,dog|cat\nb.jpg,dog", [("cat", "dog"), ("dog",)]),
        # any line ends, byte order mark, blank lines, blanks round tags, repeated and empty tags
        ("\ufefffile_name,tags\r\na.jpg, cat ; cat;;\r\n\r\nb.jpg,dog\r\n", [("cat",), ("dog",)]),
        ('file_name,tags\n"a.jpg","bear, white;say ""hi"""\nb.jpg,dog\n', [("bear, white", 'say "hi"'), ("dog",)]),
        ("id,tags,file_name\n1,cat,a.jpg\n2,dog,b.jpg\n", [("cat",), ("dog",)]),
        ("file_name,tags\na.jpg,Käse\nb.jpg,猫\n", [("Käse",), ("猫",)]),
    ],
)  # fmt: skip
def test_tags__quoting_separators_and_column_order(
    tmp_path: Path, csv_text: str, tags: list[tuple[str, ...]]
) -> None:
    small_set(tmp_path, csv_text)
    split = open_split("tiny_train", tmp_path)
    assert [tuple(split.classes[t] for t in split.tags(i)) for i in split.ids] == tags


def test_ids__from_paths_below_the_image_folder(tmp_path: Path) -> None:
    small_set(tmp_path, "file_name,tags\nx/a.jpg,cat\ny/a.jpg,dog\n", files=("x/a.jpg", "y/a.jpg"))
    split = open_split("tiny_train", tmp_path)
    assert split.ids == ("x__a", "y__a")
    assert split.file_name("y__a") == "y/a.jpg"
    assert split.image_path("y__a").is_file()


def test_tags__untagged_and_missing_images_are_problems(tmp_path: Path) -> None:
    small_set(tmp_path, "file_name,tags\na.jpg,cat\nb.jpg,\ngone.jpg,cat\n")
    split = open_split("tiny_train", tmp_path)
    assert split.ids == ("a",)
    assert [(p.id, p.kind) for p in split.problems] == [("b", "no_tags"), ("gone", "missing_image")]


@pytest.mark.parametrize(
    ("csv_text", "message"),
    [
        ("", "no column 'file_name'"),
        ("filename,tags\na.jpg,cat\n", "did you mean 'filename'"),
        ("file_name,tag\na.jpg,cat\n", "no column 'tags'"),
        ("file_name,tags\na.jpg,cat,dog\n", "line 2 has 3 columns"),
        ('file_name,tags\na.jpg,"cat\n', "bad CSV"),
        ("file_name,tags\na.jpg,cat\na.jpg,dog\n", "'a.jpg' is listed twice"),
        ("file_name,tags\na.jpg,cat\na.png,dog\n", "'a.png' and 'a.jpg' have the same id"),
        ("file_name,tags\n/etc/a.jpg,cat\n", "line 2: '/etc/a.jpg' is not a file name below"),
        ("file_name,tags\n../a.jpg,cat\n", "is not a file name below"),
        ("file_name,tags\na.jpg,\n", "no class can be learned"),
        ("file_name,tags\ngone.jpg,cat\n", "none of the 1 images"),
    ],
)
def test_csv__bad_files_are_named_with_the_reason(tmp_path: Path, csv_text: str, message: str) -> None:
    folder = small_set(tmp_path, csv_text)
    with pytest.raises(InputError, match=message) as caught:
        open_split("tiny_train", tmp_path)
    assert str(folder) in str(caught.value)


def test_csv__not_utf8(tmp_path: Path) -> None:
    folder = small_set(tmp_path, "")
    (folder / "train.csv").write_bytes("file_name,tags\na.jpg,Käse\n".encode("latin-1"))
    with pytest.raises(SchemaError, match="not UTF-8"):
        open_split("tiny_train", tmp_path)


def test_tags__unknown_to_the_declared_classes(tmp_path: Path) -> None:
    yaml = "format: folder\nclasses: [dog, cat]\nsubsets: {train: train}\n"
    folder = small_set(tmp_path, "file_name,tags\na.jpg,cat\nb.jpg,dgo\n", yaml=yaml)
    with pytest.raises(SchemaError, match="did you mean 'dog'") as caught:
        open_split("tiny_train", tmp_path)
    assert str(folder / "train.csv") in str(caught.value)
    (folder / "train.csv").write_text("file_name,tags\na.jpg,cat\nb.jpg,dog\n")
    split = open_split("tiny_train", tmp_path)
    assert (split.classes, split.tags("a"), split.tags("b")) == (("dog", "cat"), (1,), (0,))


def test_test_subset__every_image_of_a_folder(tmp_path: Path) -> None:
    yaml = "format: folder\nsubsets:\n  train: train\n  new: {role: test, images: fresh}\n"
    folder = small_set(tmp_path, "file_name,tags\na.jpg,cat\nb.jpg,dog\n", yaml=yaml)
    make_image(folder / "fresh" / "sub" / "z.png")
    make_image(folder / "fresh" / "y.jpg")
    (folder / "fresh" / "notes.txt").write_text("not an image")
    split = open_split("tiny_new", tmp_path)
    assert (split.ids, split.role, split.train_split) == (("sub__z", "y"), "test", "tiny_train")


def test_test_subset__no_folder(tmp_path: Path) -> None:
    yaml = "format: folder\nsubsets:\n  train: train\n  new: {role: test, images: fresh}\n"
    small_set(tmp_path, "file_name,tags\na.jpg,cat\n", yaml=yaml)
    with pytest.raises(MissingInputError, match="folder of images does not exist"):
        open_split("tiny_new", tmp_path)
