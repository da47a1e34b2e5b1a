"""The ablation of proposals: rows from one pass are those of runs with fewer sources."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.proposals import Measurement, Variant, curve, metrics, summarise, variants
from stages.core.artifacts.schemas import PROMPTS
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.config import load_recipe
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.recall import proposal_recall
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.propose.config import ProposeConfig
from stages.propose.proposer import Proposer
from tests.propose_builders import PEAKS, boxes_of, prompt_rows
from tests.segmenter_builders import picture, random_sam


def prompts() -> Table:
    return gather(PROMPTS, {"a": ImageRows(PEAKS, {"image_h": 48, "image_w": 60})})


@pytest.mark.parametrize(
    ("row", "sources"),
    [("grid", ()), ("+ coarse", ("coarse",)), ("+ cross", ("coarse", "fine", "cross"))],
)
@pytest.mark.parametrize("settings", ["default", "paper"])
def test_measurement__a_row_is_a_run_without_the_other_sources(
    row: str, sources: tuple[str, ...], settings: str
) -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    calls: list[int] = []
    segmenter.sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    measurement = Measurement(segmenter, [Variant(settings, 4)], "cpu")
    measurement.add("a", picture(), [prompts()])
    assert calls == [1]
    found = measurement.boxes[f"{settings} 4x4: {row}", 0]["a"]
    values = {
        **(load_recipe("paper")["propose"] if settings == "paper" else {}),
        "points_per_side": 4,
        "prompt_sources": sources,
    }
    alone = boxes_of(Proposer(segmenter, ProposeConfig.model_validate(values)).propose(picture(), PEAKS))
    assert sorted(found.tolist()) == sorted(alone.astype(float).tolist())


def test_measurement__runs_differ_by_their_prompts_and_grids_do_not() -> None:
    none = gather(PROMPTS, {"a": ImageRows(prompt_rows(), {"image_h": 48, "image_w": 60})})
    measurement = Measurement(SamSegmenter("tiny", random_sam()), variants(["default"], [3, 0]), "cpu")
    measurement.add("a", picture(), [prompts(), none])
    boxes = measurement.boxes
    assert np.array_equal(boxes["default 3x3: grid", 0]["a"], boxes["default 3x3: grid", 1]["a"])
    assert np.array_equal(boxes["default 3x3: + cross", 1]["a"], boxes["default 3x3: grid", 1]["a"])
    assert len(boxes["default, no grid: + cross", 0]["a"]) > 0
    assert len(boxes["default, no grid: + cross", 1]["a"]) == 0
    assert ("default, no grid: grid", 0) not in boxes


def ground_truth() -> dict[str, ImageGroundTruth]:
    return {"a": true_image([[0, 0, 10, 10], [20, 20, 40, 40]])}


def true_image(boxes: list[list[float]]) -> ImageGroundTruth:
    count = len(boxes)
    return ImageGroundTruth(
        height=48, width=60, boxes_xyxy=np.array(boxes, np.float64), classes=np.zeros(count, np.int64),
        difficult=np.zeros(count, bool), crowd=np.zeros(count, bool),
    )  # fmt: skip


def test_summarise__mean_half_range_and_curve() -> None:
    good = np.array([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    boxes = {("row", 0): {"a": good}, ("row", 1): {"a": good[:1]}}
    table, curves = summarise(boxes, ground_truth())
    assert table["row"]["R50"] == (0.75, 0.25)
    assert table["row"]["boxes"] == (1.5, 0.5)
    assert curves["row"] == [(1, 0.5), (2, 1.0)]
    recall = proposal_recall({"a": good}, ground_truth(), (1, 2, 5))
    assert metrics(recall)["AR"] == 1.0


def test_curve__ends_where_the_boxes_end() -> None:
    recall = proposal_recall(
        {"a": np.array([[0.0, 0, 10, 10]])},
        ground_truth(),
        (1, 2, 5, 10, 20, 50, 100, 150, 200, 500, 1000, 2000),
    )
    assert curve(recall) == [(1, 0.5)]
