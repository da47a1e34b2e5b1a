"""`weaksam rank`: expected mistakes of pseudo boxes, the order of a run, and its measure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.rank_quality import mistakes, quality
from stages.core.artifacts.coco_json import write_dataset, write_results
from stages.core.datasets.catalog import open_split
from stages.core.evaluation.ground_truth import load_ground_truth
from stages.core.structures.detections import Detections
from stages.core.structures.disagreement import disagreement
from tests.command_builder import run
from tests.pgt_builders import BIRD, CAT, DOG, found
from tests.run_builder import build_run, draw_toy_data


@pytest.mark.parametrize(
    ("taught", "said", "tags", "expected"),
    [
        ([(CAT, 1, (0, 0, 10, 10))], [(CAT, 0.75, (0, 0, 10, 9))], (CAT,), (0.25, 0, 0)),  # found again
        ([(CAT, 1, (0, 0, 10, 10))], [(DOG, 0.9, (0, 0, 10, 9))], (CAT,), (1, 0.9, 0)),  # as another class
        ([(CAT, 1, (0, 0, 10, 10))], [(CAT, 0.9, (20, 0, 30, 9))], (CAT,), (1, 0.9, 0)),  # elsewhere
        ([], [], (CAT, DOG), (0, 0, 2)),
        # Two boxes on one thing are added once, a weak one never.
        ([], [(CAT, 0.8, (0, 0, 10, 10)), (BIRD, 0.5, (0, 0, 10, 9)), (CAT, 0.2, (20, 20, 30, 30))], (), (0, 0.8, 0)),
    ],
)  # fmt: skip
def test_disagreement__expected_mistakes(
    taught: list[tuple[int, float, tuple[int, int, int, int]]],
    said: list[tuple[int, float, tuple[int, int, int, int]]],
    tags: tuple[int, ...],
    expected: tuple[float, float, float],
) -> None:
    own = disagreement(found(*taught), found(*said), tags)
    assert (own.denied, own.added, own.missing) == pytest.approx(expected)
    assert own.total == pytest.approx(expected[0] + expected[2])


def test_rank_command__the_contradicted_image_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_toy_data(tmp_path / "data", train=4, test=1)
    folder = tmp_path / "run"
    build_run(folder, tmp_path / "data", "toy_train", ("pgt", "retrain"))
    split = open_split("toy_train", tmp_path / "data")
    truth = load_ground_truth("toy_train", tmp_path / "data").images
    boxes = {
        i: Detections(
            truth[i].boxes_xyxy.astype(np.float32),
            truth[i].classes,
            np.ones(len(truth[i].classes), np.float32),
        )
        for i in split.ids
    }
    wrong, looked_at = split.ids[2], split.ids[1]
    sizes = {i: (truth[i].height, truth[i].width) for i in split.ids}
    info = {"trusted": [split.file_name(looked_at)]}
    write_dataset(folder / "pgt" / "toy_train" / "pgt.json", split, boxes, sizes, info)
    said = {i: own for i, own in boxes.items() if i != wrong}
    write_results(folder / "retrain" / "toy_train" / "detections.json", split, said)
    assert run("rank", str(folder), "--data", str(tmp_path / "data"), "--json") == 0
    ranked = json.loads(capsys.readouterr().out)
    assert ranked[0]["id"] == wrong
    assert ranked[0]["disagreement"] == len(boxes[wrong])
    assert ranked[0]["reason"].endswith("boxes that the detector does not find")
    assert {image["id"] for image in ranked} == set(split.ids) - {looked_at}
    assert run("rank", str(folder), "--data", str(tmp_path / "data"), "--top", "1") == 0
    assert "and 2 more" in capsys.readouterr().out
    assert run("rank", str(tmp_path), "--data", str(tmp_path / "data")) == 3
    assert mistakes(boxes[wrong], truth[wrong]) == 0
    assert mistakes(Detections.empty(), truth[wrong]) == len(boxes[wrong])


def test_quality__of_a_perfect_and_of_a_reversed_order() -> None:
    wrong = np.array([0, 1, 2, 3, 14], np.float64)
    perfect, reversed_ = quality(wrong, wrong), quality(-wrong, wrong)
    assert (perfect.spearman, perfect.first, perfect.perfect) == pytest.approx((1, 0.7, 0.7))
    assert (reversed_.spearman, reversed_.first) == pytest.approx((-1, 0))
