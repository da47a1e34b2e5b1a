"""The benchmark of photographs: the no-training rule, the oracle, kinds of errors, and a table over runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.photos import Row as PhotoRow
from benchmarks.photos import as_text, chosen_classes, error_kinds, kind_of, main, map_rule, oracle, over_runs
from stages.core.artifacts.evidence import ProposalEvidence, evidence_pools
from stages.core.artifacts.schemas import PROPOSALS
from stages.core.artifacts.table import ImageRows, Table, gather
from stages.core.errors import UsageError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.structures.detections import Detections
from tests.run_builder import build_run, draw_toy_data

OBJECTS = np.array([[10.0, 10, 50, 50], [60.0, 60, 100, 100]])


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((12, 10, 50, 52), "right"),
        ((10, 10, 25, 50), "part"),
        ((0, 0, 100, 70), "too large"),
        ((45, 45, 65, 65), "elsewhere"),
        ((200, 200, 210, 210), "elsewhere"),
    ],
)
def test_kind_of(box: tuple[float, ...], kind: str) -> None:
    assert kind_of(np.array(box, np.float32), OBJECTS) == kind


def ground_truth(difficult: bool = False) -> dict[str, ImageGroundTruth]:
    """Two objects of class 1; the second may be difficult."""
    flags = np.array([False, difficult])
    return {"a": ImageGroundTruth(120, 120, OBJECTS, np.array([1, 1]), flags, np.zeros(2, bool))}


def detections(*boxes: tuple[float, ...]) -> dict[str, Detections]:
    """Boxes of class 1, best first."""
    scores = np.linspace(0.9, 0.1, len(boxes), dtype=np.float32)
    return {"a": Detections(np.array(boxes, np.float32), np.ones(len(boxes), np.int64), scores)}


def test_error_kinds__of_the_best_box() -> None:
    found = error_kinds(detections((10, 10, 25, 50), (10, 10, 50, 50)), ground_truth(), 3)
    assert found["part"][1] == 1
    assert found["right"][1] == 0
    assert np.isnan(found["part"][[0, 2]]).all()
    assert error_kinds({}, ground_truth(), 3)["elsewhere"][1] == 1
    assert error_kinds(detections((60, 60, 100, 100)), ground_truth(difficult=True), 3)["elsewhere"][1] == 1


def proposals() -> Table:
    """Image "a": a part and the whole of the first object, whose maps prefer the whole; "b": no maps."""
    boxes = np.array([[10, 10, 25, 50], [11, 10, 50, 50]], np.float32)
    columns = dict(zip(("x1", "y1", "x2", "y2"), boxes.T, strict=True))
    names = ("source", "class_index", "peak_score", "predicted_iou", "stability", "mask_index")
    columns |= {name: np.ones(2) for name in names}
    values = np.array([[[0.3, 0.9, 0.1]] * 3, [[0.9, 0.8, 0.1]] * 3], np.float32)[:, None]
    size, masks = {"image_h": 120, "image_w": 120}, {"rle": [np.zeros(0, np.uint8)] * 2}
    with_maps = evidence_pools(ProposalEvidence(np.array([1]), values))
    without = evidence_pools(ProposalEvidence.empty(2))
    rows = {"a": ImageRows(columns, size, masks | with_maps), "b": ImageRows(columns, size, masks | without)}
    return gather(PROPOSALS, rows)


def test_map_rule__takes_the_box_of_best_evidence() -> None:
    found = map_rule(proposals(), ("a", "b", "absent"))
    assert found["a"].boxes_xyxy.tolist() == [[11, 10, 50, 50]]
    assert found["a"].classes.tolist() == [1]
    assert len(found["b"]) == len(found["absent"]) == 0


def test_oracle__any_proposal_counts() -> None:
    assert oracle(proposals(), ground_truth(), 3)[1] == 1
    elsewhere = {"absent": ground_truth()["a"]}
    assert oracle(proposals(), elsewhere, 3)[1] == 0


def test_over_runs__only_rows_of_every_run() -> None:
    one = [PhotoRow("x", "s", np.array([0.2, 0.4])), PhotoRow("y", "s", np.array([1.0, 1.0]))]
    two = [PhotoRow("x", "s", np.array([0.4, 0.6]))]
    rows = over_runs([one, two])
    assert [name for name, _, _ in rows] == ["x"]
    assert as_text(rows, [1], ["k", "l"]).splitlines()[-1] == "| x | s | 0.500 | 0.500 ± 0.141 |"


def test_chosen_classes__unknown() -> None:
    assert chosen_classes([], ("k", "l")) == [0, 1]
    with pytest.raises(UsageError, match="no class 'm'"):
        chosen_classes(["m"], ("k", "l"))


def test_main__of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_toy_data(tmp_path / "data", train=3, test=2)
    run = tmp_path / "run"
    build_run(run, tmp_path / "data", "toy_train", ("cam", "propose", "wsod", "pgt"))
    build_run(run, tmp_path / "data", "toy_test", ("wsod",))
    files = ["--data", str(tmp_path / "data"), "--json", str(tmp_path / "table.json")]
    main(["--runs", str(run), "--train", "toy_train", "--test", "toy_test", *files])
    text = capsys.readouterr().out
    for what in ("pointing, fine map", "oracle", "wsod, CorLoc", "wsod, AP50", "pgt, precision"):
        assert f"| {what} |" in text
    assert "retrain" not in text
    assert (tmp_path / "table.json").is_file()
