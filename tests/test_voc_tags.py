"""Tags from VOC annotations, and every way in which such annotations can be bad."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.core.datasets.catalog import open_split
from stages.core.errors import MissingInputError, SchemaError
from tests.datasets_builders import Obj, make_id_list, make_image, make_voc, make_xml

BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY lol "lol">'
    + "".join(f'<!ENTITY lol{i} "{f"&lol{i - 1};" * 10}">' for i in range(1, 10))
    + "]><annotation><object><name>&lol9;</name></object></annotation>"
).replace("&lol0;", "&lol;")
EXTERNAL = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotation><object><name>&x;</name></object></annotation>"
)


def test_tags__difficult_objects_give_none_unless_asked(tmp_path: Path) -> None:
    hard = Obj("dog", difficult=True)
    make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat"), hard], "b": [hard, Obj("dog")], "c": [hard]}})
    split = open_split("tiny_train", tmp_path)
    assert [split.tags(i) for i in split.ids] == [(0,), (1,)]
    assert [(p.id, p.reason) for p in split.problems] == [("c", "all its objects are marked difficult")]
    generous = open_split("tiny_train", tmp_path, difficult_tags=True)
    assert [generous.tags(i) for i in generous.ids] == [(0, 1), (1,), (1,)]


def test_tags__images_without_tags_are_problems_on_train_splits_only(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")], "b": [], "c": []}, "test": {"d": []}})
    (folder / "Annotations" / "c.xml").unlink()
    split = open_split("tiny_train", tmp_path)
    assert [(p.id, p.kind) for p in split.problems] == [("c", "missing_annotation")]
    assert (split.ids, split.tags("b")) == (("a", "b"), ())  # an annotation without objects: a negative
    assert open_split("tiny_test", tmp_path).ids == ("d",)


def test_tags__a_train_split_without_any_tag_is_refused(tmp_path: Path) -> None:
    make_voc(tmp_path, "tiny", {"train": {"a": []}, "val": {"z": [Obj("cat")]}})
    with pytest.raises(SchemaError, match="none of the 1 images of the train split tiny_train shows a class"):
        open_split("tiny_train", tmp_path)


def test_tags__parts_of_objects_are_not_classes(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("person")]}})
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("</bndbox>", "</bndbox><part><name>head</name></part>"))
    assert open_split("tiny_train", tmp_path).classes == ("person",)


@pytest.mark.parametrize("size", [(0, 0), (-3, 10**9)])
def test_tags__sizes_in_the_xml_are_not_looked_at(tmp_path: Path, size: tuple[int, int]) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")]}})
    make_xml(folder / "Annotations" / "a.xml", [Obj("cat")], size)
    assert open_split("tiny_train", tmp_path).tags("a") == (0,)


def test_classes__the_same_for_every_split(tmp_path: Path) -> None:
    make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")]}, "test": {"b": [Obj("ant")]}})
    assert (
        open_split("tiny_train", tmp_path).classes
        == open_split("tiny_test", tmp_path).classes
        == ("ant", "cat")
    )


def test_classes__unknown_to_the_declared_list(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "VOC2007", {"trainval": {"a": [Obj("chiar")]}})
    with pytest.raises(SchemaError, match="'chiar' is not one of") as caught:
        open_split("voc07_trainval", tmp_path)
    assert str(folder / "Annotations" / "a.xml") in str(caught.value)
    assert "did you mean 'chair'" in str(caught.value)


def test_classes__nowhere_to_be_learned_from(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"test": {"a": []}})
    (folder / "Annotations" / "a.xml").unlink()
    with pytest.raises(MissingInputError, match="classes:"):
        open_split("tiny_test", tmp_path)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (BILLION_LAUGHS, "declares entities"),
        (EXTERNAL, "declares entities or refers to other files"),
        ("<annotation><object>", "not well-formed XML .*line 1, column"),
        ("", "not well-formed"),
        ("<html/>", "expected <annotation>"),
        ("<annotation><object/></annotation>", "object 1 has no name"),
        (
            "<annotation><object><name>a</name><difficult>maybe</difficult></object></annotation>",
            "expected 0 or 1",
        ),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not readable|not well-formed"),
    ],
)
def test_xml__bad_files_are_named_with_the_reason(tmp_path: Path, xml: str, message: str) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")], "b": [Obj("cat")]}})
    (folder / "Annotations" / "a.xml").write_text(xml)
    split = open_split("tiny_train", tmp_path)
    (problem,) = split.problems
    assert (split.ids, problem.id, problem.kind) == (("b",), "a", "missing_annotation")
    assert re.search(f"annotation file a.xml: .*({message})", problem.reason)


@pytest.mark.parametrize(
    ("xml", "tags"),
    [
        (b"\xef\xbb\xbf<annotation><object><name>\n cat\n</name></object></annotation>", (0,)),
        ('<?xml version="1.0" encoding="gb2312"?><annotation><folder>\u56fe</folder><object><name>cat</name></object>'
         "</annotation>".encode("gb2312"), (0,)),
        ("<annotation><folder>k\xf6ter</folder><object><name>cat</name></object></annotation>".encode("latin-1"), (0,)),
        ('<annotation xmlns="urn:x"><object><name>cat</name></object></annotation>', (0,)),
        ("<annotation><objects><object><name>cat</name></object></objects></annotation>", (0,)),
        ("<annotation><object><name>cat</name><difficult>Unspecified</difficult></object></annotation>", (0,)),
        ("<annotation><objects/></annotation>", ()),
    ],
)  # fmt: skip
def test_xml__forms_of_other_tools_are_read(tmp_path: Path, xml: str | bytes, tags: tuple[int, ...]) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")], "b": [Obj("cat")]}})
    (folder / "Annotations" / "a.xml").unlink()
    path = folder / "Annotations" / "a.XML"
    path.write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    split = open_split("tiny_train", tmp_path)
    assert (split.tags("a"), split.problems) == (tags, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na\n", "'a' is on line 1 and again on line 3"),
        ("a 1\nb -1\n", "per-class list"),
        ("/train/a\n", "is a path"),
        ("../a\n", "is a path"),
        ("\n\n", "lists no image"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_list__bad_lists_are_named_with_the_reason(tmp_path: Path, text: str | bytes, message: str) -> None:
    folder = make_voc(tmp_path)
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SchemaError, match=message) as caught:
        open_split("tiny_train", tmp_path)
    assert str(folder) in str(caught.value)


def test_list__windows_line_ends_byte_order_mark_blank_lines_and_blanks_in_names(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"my cat": [Obj("cat")], "b": [Obj("cat")]}})
    (folder / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xef\xbb\xbfmy cat\r\n\r\nb  \r\n")
    assert open_split("tiny_train", tmp_path).ids == ("b", "my cat")


def test_list__ids_in_folders_below(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"cam1/a": [Obj("cat")], "cam2/a": [Obj("dog")]}})
    (folder / "JPEGImages" / "cam1" / "._a.jpg").write_bytes(b"Mac OS X")
    split = open_split("tiny_train", tmp_path)
    assert (split.ids, [split.tags(i) for i in split.ids]) == (("cam1__a", "cam2__a"), [(0,), (1,)])
    assert split.file_name("cam2__a") == "cam2/a.jpg"


def test_images__any_ending_is_found_and_jpg_preferred(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")], "b": [Obj("cat")]}})
    (folder / "JPEGImages" / "b.jpg").unlink()
    make_image(folder / "JPEGImages" / "b.PNG")
    make_image(folder / "JPEGImages" / "a.png")
    split = open_split("tiny_train", tmp_path)
    assert [split.file_name(i) for i in split.ids] == ["a.jpg", "b.PNG"]


def test_tags__a_changed_xml_is_read_again(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"train": {"a": [Obj("cat")], "b": [Obj("mouse")]}})
    assert open_split("tiny_train", tmp_path).tags("a") == (0,)
    make_xml(folder / "Annotations" / "a.xml", [Obj("cat"), Obj("mouse")])
    assert open_split("tiny_train", tmp_path).tags("a") == (0, 1)


def test_list__missing(tmp_path: Path) -> None:
    folder = make_voc(tmp_path)
    make_id_list(folder, "val", ["img_4"])
    (folder / "dataset.yaml").write_text("format: voc\nsubsets: {train: train, test2: test}\n")
    with pytest.raises(MissingInputError, match="list of image ids does not exist"):
        open_split("tiny_test2", tmp_path)
