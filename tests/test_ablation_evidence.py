"""Evidence for the ablation: what each box is, what decides AP, and which images are won and lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ablation_evidence import Outcome, best_boxes, compare, deciding_boxes, main, outcome
from stages.core.artifacts.coco_json import write_results
from stages.core.datasets.catalog import open_split
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.structures.detections import Detections
from tests.datasets_builders import make_voc


def image(*objects: tuple[int, list[float]], difficult: tuple[int, ...] = ()) -> ImageGroundTruth:
    """Objects as (class, box)."""
    flags = np.zeros(len(objects), bool)
    flags[list(difficult)] = True
    return ImageGroundTruth(
        height=100, width=100, boxes_xyxy=np.array([box for _, box in objects], np.float64).reshape(-1, 4),
        classes=np.array([c for c, _ in objects], np.int64), difficult=flags, crowd=np.zeros(len(objects), bool),
    )  # fmt: skip


def boxes(*found: tuple[int, float, list[float]]) -> Detections:
    """Detections as (class, score, box)."""
    return Detections(
        np.array([box for _, _, box in found], np.float32).reshape(-1, 4),
        np.array([c for c, _, _ in found], np.int64),
        np.array([score for _, score, _ in found], np.float32),
    )


TWO = image((0, [10, 10, 30, 30]), (0, [40, 10, 60, 30]), (1, [10, 60, 50, 90]))


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([40, 10, 58, 30], ("right", 1)),
        ([12, 12, 20, 20], ("part", -1)),
        ([8, 8, 62, 32], ("too large", -1)),  # around both
        ([10, 60, 50, 88], ("other class", -1)),
        ([70, 70, 90, 90], ("elsewhere", -1)),
        ([24, 24, 44, 44], ("elsewhere", -1)),  # touches objects, but is mostly outside
    ],
)
def test_outcome__of_a_box_of_class_0(box: list[float], expected: tuple[Outcome, int]) -> None:
    assert outcome(np.array(box, np.float64), 0, TWO) == expected


def test_outcome__of_a_class_that_is_not_there() -> None:
    assert outcome(np.array([10.0, 10, 30, 30]), 2, TWO) == ("other class", -1)
    assert outcome(np.array([10.0, 10, 30, 30]), 2, image()) == ("elsewhere", -1)


def test_best_boxes__the_highest_scoring_one_of_every_class_that_counts() -> None:
    ground_truth = {"a": TWO, "b": image((1, [0, 0, 9, 9]), difficult=(0,))}
    found = {"a": boxes((0, 0.2, [10, 10, 30, 30]), (0, 0.9, [12, 12, 20, 20]), (2, 1.0, [0, 0, 5, 5]))}
    assert best_boxes(found, ground_truth) == {("a", 0): "part", ("a", 1): "none"}


def test_deciding_boxes__as_many_as_objects_and_duplicates_apart() -> None:
    found = {
        "a": boxes((0, 0.9, [10, 10, 30, 30]), (0, 0.8, [10, 10, 30, 29]), (0, 0.1, [40, 10, 60, 30])),
        "b": boxes((1, 0.3, [0, 0, 5, 5])),
    }
    counts = deciding_boxes(found, {"a": TWO, "b": image()}, 2)
    # The third box of class 0 comes after as many as there are objects.
    assert dict(counts) == {"right": 1, "duplicate": 1, "elsewhere": 1, "none": 0}


def test_compare__won_lost_and_counts() -> None:
    ground_truth = {"a": TWO, "b": image((1, [0, 0, 20, 20]))}
    before = {"a": boxes((0, 0.9, [12, 12, 20, 20])), "b": boxes((1, 0.5, [0, 0, 20, 20]))}
    after = {"a": boxes((0, 0.9, [10, 10, 30, 30])), "b": boxes((1, 0.5, [0, 0, 60, 60]))}
    result = compare(before, after, ground_truth, ("cat", "dog"))
    assert result["won"] == [{"image": "a", "class": "cat", "before": "part", "after": "right"}]
    assert result["lost"] == [{"image": "b", "class": "dog", "before": "right", "after": "too large"}]
    assert [counts["right"] for counts in result["best"]] == [1, 1]
    assert [sum(counts.values()) for counts in result["best"]] == [3, 3]
    assert [sum(counts.values()) for counts in result["deciding"]] == [4, 4]  # one per object


def test_main__prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_voc(tmp_path / "data")
    split = open_split("tiny_test", tmp_path / "data")
    cat = split.classes.index("cat")
    for name, box in (("before", [2, 2, 9, 9]), ("after", [2, 2, 30, 30])):
        write_results(tmp_path / f"{name}.json", split, {"img_4": boxes((cat, 0.5, [float(v) for v in box]))})
    paths = [word for name in ("before", "after") for word in (f"--{name}", str(tmp_path / f"{name}.json"))]
    main([*paths, "--split", "tiny_test", "--out", str(tmp_path / "new" / "out.json")])
    shown = capsys.readouterr().out
    assert "| part | 1 | 0 | -1 |" in shown
    assert "img_4 cat: part -> right" in shown
    assert len(json.loads((tmp_path / "new" / "out.json").read_text())["won"]) == 1
