"""True boxes and masks: coordinates of both layouts, masks, flags, and annotations that cannot be right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from stages.core.datasets.catalog import open_split
from stages.core.datasets.shapes.dataset import write_shapes
from stages.core.errors import InputError, MissingInputError, SchemaError
from stages.core.evaluation.ground_truth import RLE, GroundTruth, load_ground_truth
from tests.datasets_builders import (
    HEIGHT,
    WIDTH,
    Obj,
    make_coco,
    make_folder,
    make_id_list,
    make_image,
    make_voc,
    make_xml,
    save_palette_png,
)


def decode(rle: RLE) -> NDArray[np.uint8]:
    mask: NDArray[np.uint8] = coco_mask.decode(rle)
    return mask


def box_mask(box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask


def test_load_ground_truth__voc_boxes_lose_their_one_pixel_offset(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"test": {"a": [Obj("cat")]}})
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(
        "<annotation><size><width>0</width></size><object><name>cat</name><difficult>1</difficult><bndbox>"
        "<xmin>1</xmin><ymin>1</ymin><xmax>48</xmax><ymax>32</ymax></bndbox></object><object><name>cat</name>"
        "<bndbox><xmin>5</xmin><ymin>7.5</ymin><xmax>5</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    ground_truth = load_ground_truth("tiny_test", tmp_path).images["a"]
    assert (ground_truth.width, ground_truth.height) == (WIDTH, HEIGHT)
    assert ground_truth.boxes_xyxy.tolist() == [[0, 0, 48, 32], [4, 6.5, 5, 9]]
    assert ground_truth.difficult.tolist() == [True, False]
    assert ground_truth.masks is None
    assert ground_truth.areas is not None
    assert ground_truth.areas.tolist() == [48 * 32, 2.5]


def test_load_ground_truth__coco_boxes_flags_areas_and_masks(tmp_path: Path) -> None:
    crowd = Obj("dog", (20, 8, 40, 30), crowd=True)
    folder = make_coco(tmp_path, "tiny", {"test": {"a": [Obj("cat"), crowd], "b": []}})
    path = folder / "annotations" / "instances_test.json"
    ground_truth = load_ground_truth("tiny_test", tmp_path)
    image = ground_truth.images["10"]
    assert image.boxes_xyxy.tolist() == [[4, 6, 24, 26], [20, 8, 40, 30]]
    assert (image.classes.tolist(), image.crowd.tolist()) == ([1, 2], [False, True])
    assert image.masks is not None
    for rle, item in zip(image.masks, (Obj("cat"), crowd), strict=True):
        np.testing.assert_array_equal(decode(rle), box_mask(item.box_xyxy))
    reference = COCO(str(path))
    for rle, number in zip(image.masks, (1, 2), strict=True):
        np.testing.assert_array_equal(decode(rle), reference.annToMask(reference.anns[number]))
    assert image.areas is not None
    assert image.areas.tolist() == [400.0, 440.0]
    empty = ground_truth.images["20"]
    assert (empty.boxes_xyxy.shape, empty.masks, len(empty)) == ((0, 4), [], 0)
    assert (ground_truth.classes, ground_truth.category_ids) == (("bird", "cat", "dog"), (3, 5, 7))


def test_load_ground_truth__coco_compressed_run_lengths_and_boxes_without_masks(tmp_path: Path) -> None:
    folder = make_coco(tmp_path, "tiny", {"test": {"a": [Obj("cat")], "b": [Obj("cat"), Obj("dog")]}})
    path = folder / "annotations" / "instances_test.json"
    document = json.loads(path.read_text())
    rle = coco_mask.encode(np.asfortranarray(box_mask((1, 2, 3, 4))))
    first, second, _ = document["annotations"]
    first["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": rle["counts"].decode()}
    del first["area"], second["segmentation"], second["area"]
    second["ignore"] = 1
    path.write_text(json.dumps(document))
    ground_truth = load_ground_truth("tiny_test", tmp_path)
    masks = ground_truth.images["10"].masks
    assert masks is not None
    np.testing.assert_array_equal(decode(masks[0]), box_mask((1, 2, 3, 4)))
    areas = [ground_truth.images[i].areas for i in ("10", "20")]
    assert [a.tolist() for a in areas if a is not None] == [[4.0], [400.0, 400.0]]
    assert ground_truth.images["20"].masks is None
    assert ground_truth.images["20"].difficult.tolist() == [True, False]


def test_load_ground_truth__several_polygons_are_one_mask(tmp_path: Path) -> None:
    folder = make_coco(tmp_path, "tiny", {"test": {"a": [Obj("cat")]}})
    path = folder / "annotations" / "instances_test.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 14, 10, 14, 14, 10, 14]]
    path.write_text(json.dumps(document))
    masks = load_ground_truth("tiny_test", tmp_path).images["10"].masks
    assert masks is not None
    np.testing.assert_array_equal(decode(masks[0]), box_mask((0, 0, 4, 4)) | box_mask((10, 10, 14, 14)))


def test_load_ground_truth__voc_masks_go_to_the_objects_they_overlap(tmp_path: Path) -> None:
    left, right = Obj("cat", (2, 2, 20, 20)), Obj("dog", (24, 4, 44, 30))
    folder = make_voc(tmp_path, "tiny", {"test": {"a": [left, right]}}, masks=True)
    # The XML in another order than the instance numbers: the overlap decides.
    make_xml(folder / "Annotations" / "a.xml", [right, left])
    image = load_ground_truth("tiny_test", tmp_path).images["a"]
    assert image.masks is not None
    assert image.classes.tolist() == [1, 0]
    np.testing.assert_array_equal(decode(image.masks[0]), box_mask(right.box_xyxy))
    np.testing.assert_array_equal(decode(image.masks[1]), box_mask(left.box_xyxy))
    # An object without an instance: no complete set of masks, so none.
    make_xml(folder / "Annotations" / "a.xml", [right, left, Obj("cat", (30, 30, 32, 32))])
    assert load_ground_truth("tiny_test", tmp_path).images["a"].masks is None


def test_load_ground_truth__voc_segmentation_splits_are_about_instances(tmp_path: Path) -> None:
    folder = make_voc(
        tmp_path, "tiny", {"test": {"a": [Obj("cat", (2, 2, 20, 20)), Obj("dog", (20, 0, 48, 32))]}}
    )
    make_id_list(folder, "val", ["a"], kind="Segmentation")
    instance, kind = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    instance[4:10, 6:12], kind[4:10, 6:12] = 3, 2
    instance[3, 5:13] = kind[3, 5:13] = 255
    save_palette_png(folder / "SegmentationObject" / "a.png", instance)
    save_palette_png(folder / "SegmentationClass" / "a.png", kind)
    image = load_ground_truth("tiny_seg_val", tmp_path).images["a"]
    assert (image.boxes_xyxy.tolist(), image.classes.tolist()) == ([[6, 4, 12, 10]], [1])
    assert image.masks is not None
    np.testing.assert_array_equal(decode(image.masks[0]), box_mask((6, 4, 12, 10)))
    assert image.difficult.tolist() == [False]


def test_load_ground_truth__size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"test": {"a": [Obj("cat")]}})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 20)).save(folder / "JPEGImages" / "a.jpg", exif=exif)
    image = load_ground_truth("tiny_test", tmp_path).images["a"]
    assert (image.width, image.height) == (20, 60)


def test_load_ground_truth__unreadable_images_and_missing_xml_are_problems(tmp_path: Path) -> None:
    folder = make_voc(tmp_path, "tiny", {"test": {i: [Obj("cat")] for i in "abc"}})
    (folder / "JPEGImages" / "a.jpg").write_bytes(b"")
    (folder / "Annotations" / "b.xml").unlink()
    ground_truth = load_ground_truth("tiny_test", tmp_path)
    assert list(ground_truth.images) == ["c"]
    assert [
        (p.id, "zero bytes" in p.reason, "does not exist" in p.reason) for p in ground_truth.problems
    ] == [
        ("a", True, False),
        ("b", False, True),
    ]


def test_load_ground_truth__only_the_images_asked_for(tmp_path: Path) -> None:
    make_voc(tmp_path)
    assert list(load_ground_truth("tiny_train", tmp_path, ids={"img_3", "img_1"}).images) == [
        "img_1",
        "img_3",
    ]


def test_load_ground_truth__a_folder_of_tags_has_none(tmp_path: Path) -> None:
    make_folder(tmp_path)
    with pytest.raises(MissingInputError, match="image tags only"):
        load_ground_truth("tiny_test", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>5</xmin>", "<xmin>left</xmin>", "object 1 has xmin = 'left'"),
        ("<xmin>5</xmin>", "<xmin>nan</xmin>", "expected a number"),
        ("<xmin>5</xmin>", "", "object 1 has xmin = None"),
        ("<xmax>24</xmax>", "<xmax>4</xmax>", "object 1 has an empty box"),
        ("<name>cat</name>", "<name>cta</name>", "'cta' is not one of"),
    ],
)
def test_load_ground_truth__impossible_voc_objects_are_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = make_voc(tmp_path, "tiny", {"test": {"a": [Obj("cat")]}})
    (folder / "dataset.yaml").write_text("format: voc\nclasses: [cat]\nsubsets: {test: test}\n")
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace(old, new))
    with pytest.raises(SchemaError, match=message) as caught:
        load_ground_truth("tiny_test", tmp_path)
    assert str(xml) in str(caught.value)


@pytest.mark.parametrize("case", ["size", "rgb", "broken"])
def test_load_ground_truth__bad_voc_masks_are_named(tmp_path: Path, case: str) -> None:
    folder = make_voc(tmp_path, "tiny", {"test": {"a": [Obj("cat")]}})
    path = folder / "SegmentationObject" / "a.png"
    if case == "rgb":
        make_image(path)
    else:
        save_palette_png(path, np.zeros((3, 5), np.uint8))
    if case == "broken":
        path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(SchemaError, match=r"5 x 3 pixels|mode RGB|cannot be read") as caught:
        load_ground_truth("tiny_test", tmp_path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 2, 3]}, "annotation 1 has bbox"),
        ({"bbox": [1, 2, -3, 4]}, "negative width or height"),
        ({"bbox": [1, 2, "x", 4]}, "expected \\[x, y, width, height\\]"),
        ({"bbox": [1, 2, float("nan"), 4]}, "expected \\[x, y, width, height\\]"),
        ({"segmentation": [[1, 2, 3, 4]]}, "at least three x, y pairs"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "at least three x, y pairs"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": "abc"}}, "mask of size \\[48, 32\\]"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [3, 4]}}, "do not add up"),
        ({"id": 2}, "repeats the id 2"),
        ({"id": None}, "lacks an integer id"),
    ],
)
def test_load_ground_truth__impossible_coco_annotations_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = make_coco(tmp_path, "tiny", {"test": {"a": [Obj("cat"), Obj("dog")]}})
    path = folder / "annotations" / "instances_test.json"
    document = json.loads(path.read_text())
    document["annotations"][0].update(change)
    path.write_text(json.dumps(document))
    with pytest.raises(SchemaError, match=message) as caught:
        load_ground_truth("tiny_test", tmp_path)
    assert str(path) in str(caught.value)


def test_load_ground_truth__a_damaged_minority_costs_no_more_than_itself(tmp_path: Path) -> None:
    folder = make_coco(
        tmp_path, "tiny", {"test": {"a": [Obj("cat"), Obj("dog")], "b": [Obj("dog"), Obj("cat")]}}
    )
    path = folder / "annotations" / "instances_test.json"
    whole = json.loads(path.read_text())
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"] = [50, 10, -20]
    path.write_text(json.dumps(document))
    one, two = load_ground_truth("tiny_test", tmp_path).images.values()
    assert (one.classes.tolist(), one.left_out, len(two)) == ([2], 1, 2)
    assert "annotation 1 has bbox [50, 10, -20]" in one.flaws[0].what
    segmentations: list[Any] = [
        {"size": [HEIGHT, WIDTH], "counts": "d31"},
        {"size": [HEIGHT, WIDTH], "counts": "hello world"},
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[1, 1, 5, 1, 5, 5] * 300_000],
        [[]],
    ]
    for damaged in segmentations:
        whole["annotations"][0]["segmentation"] = damaged
        path.write_text(json.dumps(whole))
        one, two = load_ground_truth("tiny_test", tmp_path).images.values()
        assert (one.masks, len(one), len(one.flaws), two.flaws) == (None, 2, 1, ())
        assert two.masks is not None


def test_load_ground_truth__specks_beside_a_polygon(tmp_path: Path) -> None:
    folder = make_coco(tmp_path, "tiny", {"test": {"a": [Obj("cat")]}})
    path = folder / "annotations" / "instances_test.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["segmentation"] = [[0, 0, 4, 0, 4, 4, 0, 4], [7, 7], [1, 1, 2, 2]]
    path.write_text(json.dumps(document))
    masks = load_ground_truth("tiny_test", tmp_path).images["10"].masks
    assert masks is not None
    np.testing.assert_array_equal(decode(masks[0]), box_mask((0, 0, 4, 4)))


def test_load_ground_truth__one_damaged_voc_object_among_three(tmp_path: Path) -> None:
    scene = [Obj("cat", (2, 2, 10, 10)), Obj("dog", (11, 11, 20, 20)), Obj("cat", (30, 5, 40, 20))]
    folder = make_voc(tmp_path, "tiny", {"test": {"a": scene}}, masks=True)
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<xmin>12</xmin>", "<xmin>left</xmin>"))
    image = load_ground_truth("tiny_test", tmp_path).images["a"]
    assert (len(image), image.left_out) == (2, 1)
    assert image.masks is not None
    (folder / "SegmentationObject" / "a.png").write_bytes(b"broken")
    xml.write_text(xml.read_text().replace("<xmin>left</xmin>", "<xmin>12</xmin>"))
    image = load_ground_truth("tiny_test", tmp_path).images["a"]
    assert (image.masks, len(image), len(image.flaws)) == (None, 3, 1)


def same_objects(voc: GroundTruth, coco: GroundTruth, partner: dict[str, str]) -> int:
    count = 0
    for image_id, one in voc.images.items():
        two = coco.images[partner[image_id]]
        np.testing.assert_array_equal(one.boxes_xyxy, two.boxes_xyxy)
        assert [voc.classes[k] for k in one.classes] == [coco.classes[k] for k in two.classes]
        assert one.difficult.tolist() == two.difficult.tolist()
        assert one.masks is not None
        assert one.masks == two.masks
        count += len(one)
    return count


def test_load_ground_truth__both_layouts_agree_on_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shapes(tmp_path, {"train": 4, "val": 0, "test": 3})
    monkeypatch.setattr("stages.core.datasets.shapes.dataset.ensure_shapes", lambda root: root / "shapes")
    for subset in ("train", "test"):
        name = f"shapes_{subset}"
        split, other = open_split(name, tmp_path), open_split(name, tmp_path, layout="coco")
        by_file = {other.file_name(i): i for i in other.ids}
        partner = {i: by_file[split.file_name(i)] for i in split.ids}
        voc, coco = load_ground_truth(name, tmp_path), load_ground_truth(name, tmp_path, layout="coco")
        assert same_objects(voc, coco, partner) > 0


def test_load_ground_truth__a_missing_split_is_an_input_error(tmp_path: Path) -> None:
    make_voc(tmp_path)
    with pytest.raises(InputError, match="did you mean 'tiny_test'"):
        load_ground_truth("tiny_tset", tmp_path)
