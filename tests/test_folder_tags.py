"""Images with a CSV of tags: the smallest data set a user can bring."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.datasets.catalog import list_splits, open_split
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
        ("", "the table is empty"),
        ("a.jpg,cat\nb.jpg,dog\n", "the first line, 'a.jpg,cat', is an image"),
        ("fliename,tags\na.jpg,cat\n", "did you mean 'fliename'"),
        ("file_name,kind\na.jpg,cat\n", "no column of tags"),
        ("file_name,tags\na.jpg,cat,dog\n", "line 2 has 3 columns"),
        ('file_name,tags\na.jpg,"cat\n', "bad CSV"),
        ("file_name,tags\na.jpg,cat\na.png,dog\n", "'a.png' and 'a.jpg' have the same id"),
        ("file_name,tags\na.jpg,cat\n/etc/passwd,cat\n", "'/etc/passwd' is not a file name below"),
        ("file_name,tags\na.jpg,cat\n../up.jpg,cat\n", "is not a file name below"),
        ("file_name,tags\na.jpg,cat\nC:\\up.jpg,cat\n", "is not a file name below"),
        ("file_name,tags\na.jpg," + "c" * 300 + "\n", "has 300 characters"),
        ('file_name,tags\na.jpg,"ca\nt"\n', "line break"),
        ("file_name,tags\na.jpg,\n", "no class can be learned"),
        ("file_name,tags\ngone.jpg,cat\n", "none of the 1 images"),
    ],
)
def test_csv__bad_files_are_named_with_the_reason(tmp_path: Path, csv_text: str, message: str) -> None:
    folder = small_set(tmp_path, csv_text)
    with pytest.raises(InputError, match=message) as caught:
        open_split("tiny_train", tmp_path)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("table", "encoding", "note"),
    [
        ("file_name,tags\na.jpg,k\xf6ter;cat\nb.jpg,dog\n", "latin-1", "Windows-1252"),
        ("file_name;tags\r\na.jpg;k\xf6ter|cat\r\nb.jpg;dog\r\n", "utf-8-sig", ""),
        ("file_name\ttags\na.jpg\tk\xf6ter,cat\nb.jpg\tdog\n", "utf-16", ""),
        ("sep=;\nfile_name;tags\na.jpg;k\xf6ter|cat\nb.jpg;dog\n", "utf-8", ""),
        ('File_Name,Tags\ra.jpg,"k\xf6ter, cat"\rb.jpg,dog\r,\r', "utf-8", "column 'File_Name'"),
        (",image_id,label\n0,a,\"['ko\u0308ter', 'cat']\"\n1,b,dog\n", "utf-8", "spelled otherwise"),  # as on a Mac
        ("filename, cat, dog, k\xf6ter\na.jpg, 1, 0, 1\nb.jpg, 0, 1, 0\n", "utf-8", "columns of 0 and 1"),
        ("file_name,tags\na.jpg,k\xf6ter\nb.jpg,dog,\na.jpg,cat\n", "utf-8", "several entries"),
        ("image,label\nimages/a.jpg,k\xf6ter cat\n.\\B.JPG,dog\na.jpg,cat\na.jpg,k\xf6ter\n", "utf-8", "by blanks"),
        ("file,class\nC:\\me\\a.jpg,k\xf6ter;cat;nan\nhttps://example.org/b.jpg?x=1,dog\n", "utf-8", "'C:"),
    ],
)  # fmt: skip
def test_table__as_people_have_it(tmp_path: Path, table: str, encoding: str, note: str) -> None:
    folder = small_set(tmp_path, "")
    (folder / "train.csv").write_bytes(table.encode(encoding))
    split = open_split("tiny_train", tmp_path)
    assert split.classes == ("cat", "dog", "k\xf6ter")
    assert {i: split.tags(i) for i in split.ids} == {"a": (0, 2), "b": (1,)}
    assert note in "; ".join(split.notes)
    assert bool(note) == bool(split.notes)


def test_table__negatives_and_images_that_are_not_tagged_are_told_apart(tmp_path: Path) -> None:
    rows = ["a.jpg,cat", "b.jpg,background", "c.jpg,nan", "d.jpg,None", "e.jpg,"]
    names = tuple(row.split(",")[0] for row in rows)
    small_set(tmp_path, "\n".join(["file_name,tags", *rows]), files=names)
    split = open_split("tiny_train", tmp_path)
    assert (split.classes, split.ids) == (("cat",), ("a", "b"))
    assert split.tags("b") == ()
    assert [p.id for p in split.problems] == ["c", "d", "e"]
    assert split.problems[0].reason == (
        "line 4 has no tag; write 'background' where an image shows none of the classes"
    )


def test_table__a_backup_beside_it_is_no_subset(tmp_path: Path) -> None:
    folder = small_set(tmp_path, "file_name,tags\na.jpg,cat\nb.jpg,dog\n")
    for name in (
        "train_backup.csv",
        "._train.csv",
        "train (copy).csv",
        ".ipynb_checkpoints/train-checkpoint.csv",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("file_name,tags\na.jpg,kat\n")
    assert open_split("tiny_train", tmp_path).classes == ("cat", "dog")
    assert [name for name in list_splits(tmp_path) if name.startswith("tiny")] == ["tiny_train"]


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
    for hidden in (
        "._y.jpg",
        ".ipynb_checkpoints/y-checkpoint.jpg",
        "@eaDir/y.jpg/thumb.jpg",
        "__MACOSX/y.jpg",
    ):
        make_image(folder / "fresh" / hidden)
    make_image(folder / "store" / "linked.jfif")
    (folder / "fresh" / "batch").symlink_to(folder / "store")
    (folder / "store" / "loop").symlink_to(folder / "fresh")
    split = open_split("tiny_new", tmp_path)
    assert (split.ids, split.role, split.train_split) == (
        ("batch__linked", "sub__z", "y"),
        "test",
        "tiny_train",
    )


def test_test_subset__no_folder(tmp_path: Path) -> None:
    yaml = "format: folder\nsubsets:\n  train: train\n  new: {role: test, images: fresh}\n"
    small_set(tmp_path, "file_name,tags\na.jpg,cat\n", yaml=yaml)
    with pytest.raises(MissingInputError, match="folder of images does not exist"):
        open_split("tiny_new", tmp_path)
