"""`keep_fraction`: which images of a class are certain enough to give it pseudo boxes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stages.pgt.adaptive import ImageSelection, Rule, select
from stages.pgt.certainty import without_uncertain
from stages.pgt.statistics import class_statistics, missing_tags, reasons
from tests.pgt_builders import BIRD, CAT, DOG, context, found, run

BOX = (0.0, 0.0, 10.0, 10.0)


def selected(*detections: tuple[int, float]) -> tuple[ImageSelection, np.ndarray]:
    """An image with one detection of each class named, and their scores."""
    classes = np.array([label for label, _ in detections])
    scores = np.array([score for _, score in detections])
    boxes = np.array([BOX] * len(detections))
    return select(boxes, scores, classes, classes.tolist(), Rule()), scores


IMAGES = {
    "a": selected((CAT, 0.9), (DOG, 0.1)),
    "b": selected((CAT, 0.2)),
    "c": selected((CAT, 0.5), (DOG, 0.6)),
    "d": selected((CAT, 0.2)),
}
SELECTIONS = {image_id: selection for image_id, (selection, _) in IMAGES.items()}
SCORES = {image_id: scores for image_id, (_, scores) in IMAGES.items()}


def kept(fraction: float) -> dict[str, list[int]]:
    """Classes that keep a box, per image."""
    left = without_uncertain(SELECTIONS, SCORES, fraction)
    return {i: [part.class_index for part in one.per_class if len(part.rows)] for i, one in left.items()}


def test_without_uncertain__each_class_by_its_own_best_images() -> None:
    assert kept(0.5) == {"a": [CAT], "b": [], "c": [CAT, DOG], "d": []}


def test_without_uncertain__rounds_up_and_keeps_the_earlier_of_equal_images() -> None:
    assert kept(0.6) == {"a": [CAT, DOG], "b": [CAT], "c": [CAT, DOG], "d": []}
    assert kept(0.01) == {"a": [CAT], "b": [], "c": [DOG], "d": []}


def test_without_uncertain__one_keeps_everything() -> None:
    assert without_uncertain(SELECTIONS, SCORES, 1.0) == SELECTIONS


def test_statistics__uncertain_images_are_counted_and_named() -> None:
    left = without_uncertain(SELECTIONS, SCORES, 0.5)
    names = ("bird", "cat", "dog")
    assert [entry.uncertain_images for entry in class_statistics(left, names)] == [0, 2, 1]
    assert reasons(left, names) == {
        image_id: "less certain than other images of cat (keep_fraction)" for image_id in ("b", "d")
    }
    assert missing_tags(left, names) == {"a": ["dog"]}


def test_pgt__leaves_out_uncertain_images(tmp_path: Path) -> None:
    two = {"img_1": found((DOG, 0.8, (4, 6, 24, 26))), "img_2": found((DOG, 0.1, (4, 6, 24, 26)))}
    at = context(tmp_path, detections=two | {"img_3": found((BIRD, 0.3, (4, 6, 24, 26)))})
    assert run(at, keep_fraction=0.5)["pseudo_boxes"] == 2
    written = json.loads((at.out / "pgt.json").read_text())
    assert "img_2" in written["info"]["without_boxes"]
