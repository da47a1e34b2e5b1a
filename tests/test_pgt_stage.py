"""`pgt` as a stage: what it writes, what it counts, what it refuses."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts.coco_json import read_dataset
from stages.core.errors import ConfigError, InputError, UsageError
from stages.core.structures.detections import Detections
from stages.pgt import viz
from stages.pgt.adaptive import select
from stages.pgt.config import PgtConfig
from stages.pgt.statistics import reasons
from tests.datasets_builders import HEIGHT, WIDTH
from tests.pgt_builders import CAT, DETECTIONS, DOG, context, found, run


def test_pgt__writes_a_coco_data_set_with_statistics_and_reasons(tmp_path: Path) -> None:
    at = context(tmp_path)
    lines: list[dict[str, Any]] = []
    at.metrics_fn = lambda values: lines.append(dict(values))
    assert run(at) == {
        "pseudo_boxes": 4,
        "images_without_boxes": 1,
        "images_missing_a_tag": 0,
        "trusted_images": 0,
        "negatives": 0,
    }
    assert not at.failures.entries, "an image in which nothing was found is no failure"
    loaded = json.loads((at.out / "pgt.json").read_text())
    assert [a["id"] for a in loaded["annotations"]] == [1, 2, 3, 4]
    assert {a["iscrowd"] for a in loaded["annotations"]} == {0}
    assert loaded["annotations"][0]["area"] == 400.0
    assert loaded["annotations"][0]["score"] == pytest.approx(0.8)
    assert [(i["height"], i["width"]) for i in loaded["images"]] == [(HEIGHT, WIDTH)] * 3
    assert loaded["info"]["without_boxes"] == {"img_2": "no detection of its tags: dog"}
    assert "missing_tags" not in loaded["info"]
    boxes = read_dataset(at.out / "pgt.json", at.split).boxes
    assert boxes["img_1"].classes.tolist() == [CAT, DOG, DOG]
    assert len(boxes["img_2"]) == 0
    dog = next(line for line in lines if line["class"] == "dog")
    assert dog["tagged_images"] == 2
    assert dog["images_with_boxes"] == 1
    assert dog["detections"] == dog["boxes"] == 2
    pictures = viz.draw(at.out, at.split, at.split.ids, tmp_path / "viz")
    assert all(path.is_file() for path in pictures)


def test_pgt__pictures_of_the_images_that_can_be_read(tmp_path: Path) -> None:
    from tests.command_builder import run as command

    at = context(tmp_path)
    at.split.image_path("img_1").write_bytes(b"not an image")
    whole = at.split.image_path("img_2").read_bytes()
    at.split.image_path("img_2").write_bytes(whole[: len(whole) // 2])  # the header gives its size
    words = ["pgt", "--split", "tiny_train", "--data", tmp_path / "data", "--run", tmp_path / "run", "--viz", 3,
             "--detections", at.input("detections"), "--max-failures", 1]  # fmt: skip
    assert command("-q", *map(str, words)) == 0
    drawn = tmp_path / "run" / "pgt" / "tiny_train" / "viz"
    assert [path.name for path in drawn.iterdir()] == ["img_3.png"]


@pytest.mark.parametrize(
    ("settings", "boxes"),
    [
        ({"mode": "paper"}, 3),  # the weaker of two dogs is the minimum: 0 after min-max
        ({"mode": "topk"}, 3),
        ({"mode": "topk", "top_k": 2}, 5),
        ({"mode": "pgf", "tau_s": 0.2, "exempt_classes": ("dog",)}, 3),
        ({"tau_s": 0.9}, 3),
    ],
)
def test_pgt__modes(tmp_path: Path, settings: dict[str, Any], boxes: int) -> None:
    assert run(context(tmp_path), **settings)["pseudo_boxes"] == boxes


def test_pgt__a_class_without_any_box_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("weaksam"), "propagate", True)
    at = context(tmp_path, detections=DETECTIONS | {"img_3": Detections.empty()})
    with caplog.at_level(logging.WARNING, logger="weaksam"):
        run(at)
    assert "class bird has 1 tagged images and no pseudo box" in caplog.text


def test_pgt__images_that_miss_one_of_their_tags_are_named(tmp_path: Path) -> None:
    at = context(tmp_path, detections=DETECTIONS | {"img_1": found((DOG, 0.5, (4, 6, 24, 26)))})
    assert run(at) == {
        "pseudo_boxes": 2,
        "images_without_boxes": 1,
        "images_missing_a_tag": 1,
        "trusted_images": 0,
        "negatives": 0,
    }
    info = json.loads((at.out / "pgt.json").read_text())["info"]
    assert info["missing_tags"] == {"img_1": ["cat"]}
    assert info["without_boxes"] == {"img_2": "no detection of its tags: dog"}


def test_reasons__every_tagged_image_without_boxes_has_one() -> None:
    none, rule = Detections.empty(), PgtConfig().rule(("bird", "cat"))
    selections = {
        name: select(none.boxes_xyxy, none.scores, none.classes, tags, rule)
        for name, tags in (("negative", ()), ("tagged", (1,)))
    }
    assert reasons(selections, ("bird", "cat")) == {"tagged": "no detection of its tags: cat"}


def test_pgt__nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pseudo ground truth"):
        run(context(tmp_path, detections={}))


def test_pgt__same_input_same_bytes(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        at = context(tmp_path / name)
        run(at)
        files.append((at.out / "pgt.json").read_bytes())
    assert files[0] == files[1]


def test_pgt__test_split_and_unknown_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="use tiny_train"):
        run(context(tmp_path / "a", "test"))
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        run(context(tmp_path / "b"), mode="pgf", exempt_classes=("dgo",))


def test_pgt__unreadable_image_is_recorded(tmp_path: Path) -> None:
    at = context(tmp_path)
    at.split.image_path("img_3").write_bytes(b"")
    run(at)
    assert set(at.failures.entries) == {"img_3"}
