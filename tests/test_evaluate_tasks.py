"""From artifact files and a data set on disk to figures: one artifact, and a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from stages.core.artifacts.coco_json import write_dataset, write_results
from stages.core.artifacts.manifest import Manifest, write_manifest
from stages.core.artifacts.schemas import CAMS, PROMPTS, PROPOSALS
from stages.core.artifacts.table import ImageRows, gather, write_table
from stages.core.artifacts.table_file import TableSchema
from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.errors import InputError, MissingInputError, SchemaError, StaleInputError, UsageError
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.suite import EVALUATION_NAME, config_fingerprint, evaluate_run
from stages.core.evaluation.tasks import TASKS, evaluate, infer_task, load_labeled_split
from stages.core.structures.detections import Detections
from tests.datasets_builders import SCENES, Obj, make_voc

TRAIN, TEST = "tiny_train", "tiny_test"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_voc(tmp_path / "data", masks=True)
    return tmp_path / "data"


def perfect(ground_truth: Mapping[str, ImageGroundTruth]) -> dict[str, Detections]:
    """Detections that repeat the ground truth."""
    return {
        name: Detections(
            t.boxes_xyxy.astype(np.float32), t.classes, np.full(len(t), 0.9, np.float32), t.masks or None
        )
        for name, t in ground_truth.items()
    }


def rows_of(schema: TableSchema, n: int, **values: object) -> ImageRows:
    pointers = {column for _, start, count in schema.pools.values() for column in (start, count)}
    columns = {name: np.zeros(n, dtype) for name, dtype in schema.columns.items() if name not in pointers}
    for name, value in values.items():
        columns[name][:] = value
    return ImageRows(
        columns, {"image_h": 32, "image_w": 48}, {pool: [np.zeros(0)] * n for pool in schema.pools}
    )


def write_cams(path: Path, ground_truth: Mapping[str, ImageGroundTruth]) -> None:
    """For every image and class: a coarse map that peaks on an object, a cross map that peaks in the corner."""
    rows = {}
    for name, true in ground_truth.items():
        classes = np.unique(true.classes)
        row = rows_of(CAMS, 2 * len(classes), class_index=np.repeat(classes, 2), grid_h=16, grid_w=24)
        row.columns["kind"][1::2] = 2
        row.columns["layer"][1::2] = 5
        row.pools["values"] = []
        for label in classes:
            box = true.boxes_xyxy[true.classes == label][0]
            on, off = np.zeros((16, 24)), np.zeros((16, 24))
            on[int(box[1:4:2].mean() / 2), int(box[0:3:2].mean() / 2)] = 1
            off[15, 0] = 1
            row.pools["values"] += [on.ravel(), off.ravel()]
        rows[name] = row
    write_table(path, CAMS, gather(CAMS, rows))


def write_proposals(path: Path, ground_truth: Mapping[str, ImageGroundTruth]) -> None:
    """The true boxes from the cross prompts, rated low; one far box per image from the grid, rated best."""
    rows = {}
    for name, true in ground_truth.items():
        boxes = np.concatenate([true.boxes_xyxy, [[0, 30, 2, 32]]])
        row = rows_of(PROPOSALS, len(boxes), source=8, predicted_iou=0.5)
        row.columns["source"][-1], row.columns["predicted_iou"][-1] = 1, 0.9
        for i, corner in enumerate(("x1", "y1", "x2", "y2")):
            row.columns[corner][:] = boxes[:, i]
        rows[name] = row
    write_table(path, PROPOSALS, gather(PROPOSALS, rows))


def write_prompts(path: Path, ground_truth: Mapping[str, ImageGroundTruth]) -> None:
    rows = {}
    for name, true in ground_truth.items():
        centres = (true.boxes_xyxy[:, :2] + true.boxes_xyxy[:, 2:]) / 2
        rows[name] = rows_of(
            PROMPTS, len(true), x=centres[:, 0], y=centres[:, 1], class_index=true.classes, source=2
        )
    write_table(path, PROMPTS, gather(PROMPTS, rows))


def write_pgt(path: Path, split: WeakSplit, boxes: dict[str, Detections]) -> None:
    write_dataset(path, split, boxes, {name: (32, 48) for name in split.ids})


def finish(run: Path, stage: str, split: str, outputs: list[str], limit: int | None = None) -> None:
    manifest = Manifest(
        stage=stage,
        split=split,
        config={"rounds": 3},
        seed=4,
        version="0",
        git=None,
        command=["weaksam", stage],
        outputs=dict.fromkeys(outputs, ""),
        limit=limit,
        wall_seconds=1.5,
    )
    write_manifest(run / stage / split, manifest)


def write_run(run: Path, data: Path) -> None:
    for split_name in (TRAIN, TEST):
        labeled = load_labeled_split(split_name, data)
        found = perfect(labeled.images)
        boxes = {name: Detections(d.boxes_xyxy, d.classes, d.scores) for name, d in found.items()}
        for stage in ("cam", "prompt", "propose", "wsod", "pgt", "retrain", "wsis"):
            (run / stage / split_name).mkdir(parents=True)
        write_cams(run / "cam" / split_name / "cams.h5", labeled.images)
        write_prompts(run / "prompt" / split_name / "prompts.h5", labeled.images)
        write_proposals(run / "propose" / split_name / "proposals.h5", labeled.images)
        write_results(run / "wsod" / split_name / "detections.json", labeled.split, boxes)
        write_results(run / "wsis" / split_name / "segmentations.json", labeled.split, found)
        for stage, output in (
            ("cam", "cams.h5"),
            ("prompt", "prompts.h5"),
            ("propose", "proposals.h5"),
            ("wsod", "detections.json"),
        ):
            finish(run, stage, split_name, [output])
        if split_name == TRAIN:
            write_pgt(run / "pgt" / split_name / "pgt.json", labeled.split, boxes)
            write_pgt(run / "wsis" / split_name / "pgt_masks.json", labeled.split, found)
            finish(run, "pgt", split_name, ["pgt.json"])
            finish(run, "wsis", split_name, ["pgt_masks.json", "segmentations.json"])
        else:
            finish(run, "wsis", split_name, ["segmentations.json"])


def test_evaluate__detections_on_a_train_split(data: Path, tmp_path: Path) -> None:
    labeled = load_labeled_split(TRAIN, data)
    found = perfect(labeled.images)
    boxes = {name: Detections(d.boxes_xyxy, d.classes, d.scores) for name, d in found.items()}
    boxes["img_1"] = Detections.empty()  # of cat the only object, of dog one of three is lost
    path = tmp_path / "detections.json"
    write_results(path, labeled.split, boxes)
    report = evaluate(None, path, TRAIN, data)
    assert report.task == "detections"
    assert report.images == 3
    assert report.metrics["ap50"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert report.metrics["corloc"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert report.metrics["boxes_per_image"] == 1
    assert report.per_class["dog"]["ap50"] == pytest.approx(2 / 3)
    assert report.per_class["cat"]["corloc"] == 0
    json.dumps(report.as_json(), allow_nan=False)


def test_evaluate__no_corloc_on_a_test_split(data: Path, tmp_path: Path) -> None:
    labeled = load_labeled_split(TEST, data)
    write_results(tmp_path / "detections.json", labeled.split, perfect(labeled.images))
    report = evaluate(None, tmp_path / "detections.json", TEST, data)
    assert "corloc" not in report.metrics
    # No test image shows a dog: nan in the report, None in JSON.
    assert math.isnan(report.per_class["dog"]["ap50"])
    assert report.as_json()["per_class"]["dog"]["ap50"] is None


def test_evaluate__proposals(data: Path, tmp_path: Path) -> None:
    write_proposals(tmp_path / "proposals.h5", load_labeled_split(TRAIN, data).images)
    metrics = evaluate("proposals", tmp_path / "proposals.h5", TRAIN, data).metrics
    assert metrics["recall90"] == metrics["recall90_cross"] == 1
    assert metrics["recall50_grid"] == 0
    assert metrics["boxes_per_image"] == pytest.approx(8 / 3)
    assert metrics["boxes_per_image_grid"] == 1
    assert "recall50_fine" not in metrics


def test_evaluate__limit_is_that_of_the_manifest(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    labeled = load_labeled_split(TRAIN, data, limit=1)
    (run / "wsod" / TRAIN).mkdir(parents=True)
    artifact = run / "wsod" / TRAIN / "detections.json"
    write_results(artifact, labeled.split, perfect(labeled.images))
    assert evaluate(None, artifact, TRAIN, data).metrics["corloc"] < 1  # no manifest: the whole split
    finish(run, "wsod", TRAIN, ["detections.json"], limit=1)
    report = evaluate(None, artifact, TRAIN, data)
    assert (report.images, report.metrics["corloc"]) == (1, 1)
    assert evaluate(None, artifact, TRAIN, data, limit=3).metrics["corloc"] < 1


def test_evaluate__a_file_of_another_split(data: Path, tmp_path: Path) -> None:
    labeled = load_labeled_split(TRAIN, data)
    run = tmp_path / "run"
    path = run / "retrain" / TRAIN / "detections.json"
    path.parent.mkdir(parents=True)
    write_results(path, labeled.split, perfect(labeled.images))
    finish(run, "retrain", TRAIN, ["detections.json"])
    with pytest.raises(InputError, match=f"made for split {TRAIN}"):
        evaluate(None, path, TEST, data)


def test_evaluate__segmentations_without_true_masks_measure_boxes(tmp_path: Path) -> None:
    data = tmp_path / "plain"
    make_voc(data)
    labeled = load_labeled_split(TEST, data)
    write_results(tmp_path / "segmentations.json", labeled.split, perfect(labeled.images))
    report = evaluate("segmentations", tmp_path / "segmentations.json", TEST, data)
    assert report.metrics["box_ap50"] == 1
    assert not [name for name in report.metrics if name.startswith("mask_")]
    assert "no masks" in report.notes[0]


def test_evaluate__difficult_objects_of_the_files_are_ignored(tmp_path: Path) -> None:
    data = tmp_path / "hard"
    make_voc(data, subsets={"train": {"a": [Obj("cat"), Obj("cat", (30, 0, 40, 10), difficult=True)]}})
    labeled = load_labeled_split(TRAIN, data)
    only_easy = {
        "a": Detections(np.array([[4, 6, 24, 26]], np.float32), np.zeros(1, np.int64), np.ones(1, np.float32))
    }
    write_results(tmp_path / "detections.json", labeled.split, only_easy)
    metrics = evaluate(None, tmp_path / "detections.json", TRAIN, data).metrics
    assert metrics["ap50"] == 1
    assert metrics["coco_ap50"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"image_id": 99, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 1}, "image 99"),
        ({"image_id": 1, "category_id": 77, "bbox": [0, 0, 5, 5], "score": 1}, "category 77"),
        ({"image_id": 1, "category_id": 1, "score": 1}, "bbox"),
        ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, float("nan")], "score": 1}, "finite"),
    ],
)
def test_evaluate__names_the_file_that_is_wrong(
    data: Path, tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps([entry]))
    with pytest.raises(SchemaError, match=message) as caught:
        evaluate(None, path, TRAIN, data)
    assert "detections.json" in str(caught.value)


def test_evaluate__bad_arguments(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    with pytest.raises(MissingInputError):
        evaluate(None, path, TRAIN, data)
    path.write_text("[]")
    with pytest.raises(UsageError, match="did you mean 'detections'"):
        evaluate("detection", path, TRAIN, data)
    with pytest.raises(InputError):
        evaluate(None, path, "absent_train", data)
    assert evaluate(None, path, TRAIN, data).metrics["ap50"] == 0  # no results at all


def test_infer_task__by_name_then_by_content(data: Path, tmp_path: Path) -> None:
    ground_truth = load_labeled_split(TRAIN, data).images
    split = open_split(TRAIN, data)
    for number, (task, write) in enumerate({"cams": write_cams, "proposals": write_proposals}.items()):
        write(tmp_path / f"x{number}.h5", ground_truth)
        assert infer_task(tmp_path / f"x{number}.h5") == task
    write_results(tmp_path / "y.json", split, perfect(ground_truth))
    assert infer_task(tmp_path / "y.json") == "segmentations"
    write_pgt(tmp_path / "z.json", split, perfect(ground_truth))
    assert infer_task(tmp_path / "z.json") == "pgt"
    assert infer_task(tmp_path / "pgt_masks.json") == "pgt"
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "notes.txt").write_text("[]")
    for name in ("empty.json", "notes.txt"):
        with pytest.raises(UsageError, match="--task"):
            infer_task(tmp_path / name)


def test_evaluate_run__gathers_every_stage(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "toy"
    write_run(run, data)
    result = evaluate_run(run, data, TRAIN, TEST)
    assert json.loads((run / EVALUATION_NAME).read_text()) == result
    assert {row["task"] for row in result["rows"]} == set(TASKS)
    metrics = result["metrics"]
    for split in (TRAIN, TEST):
        assert metrics[f"cam.{split}.pointing_coarse"] == 1
        assert metrics[f"cam.{split}.pointing_cross"] == 0
        assert metrics[f"prompt.{split}.object_recall"] == 1
        assert metrics[f"propose.{split}.recall75"] == 1
        assert metrics[f"wsod.{split}.ap50"] == 1
        assert metrics[f"wsis.{split}.mask_ap75"] == pytest.approx(1)
    assert metrics[f"wsod.{TRAIN}.corloc"] == 1
    assert metrics[f"pgt.{TRAIN}.precision50"] == metrics[f"wsis.{TRAIN}.mask_precision50"] == 1
    row = next(row for row in result["rows"] if row["artifact"] == f"wsod/{TRAIN}/detections.json")
    assert row["metrics"].keys() == {"ap50", "ap50_11point", "corloc", "coco_ap"}
    assert (row["seed"], row["command"]) == (4, ["weaksam", "wsod"])
    assert row["config_sha256"] == config_fingerprint({"rounds": 3})
    assert str(tmp_path) not in json.dumps(result)


def test_evaluate_run__twice_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, data)
    evaluate_run(run, data, TRAIN, TEST)
    first = (run / EVALUATION_NAME).read_bytes()
    evaluate_run(run, data, TRAIN, TEST)
    assert (run / EVALUATION_NAME).read_bytes() == first


def test_evaluate_run__unfinished_stages_are_left_out(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, data)
    (run / "wsod" / TEST / "manifest.json").unlink()
    rows = evaluate_run(run, data, TRAIN, TEST)["rows"]
    assert f"wsod/{TEST}/detections.json" not in {row["artifact"] for row in rows}
    assert evaluate_run(run, data, TRAIN)["metrics"].keys() == {
        name for name in evaluate_run(run, data, TRAIN, TEST)["metrics"] if f".{TRAIN}." in name
    }
    with pytest.raises(MissingInputError, match="no stage has finished on"):
        evaluate_run(tmp_path / "nothing", data, TRAIN, TEST)


def test_evaluate_run__a_changed_artifact_is_stale(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run, data)
    (run / "wsod" / TRAIN / "detections.json").write_text("[]")
    with pytest.raises(StaleInputError, match="manifest"):
        evaluate_run(run, data, TRAIN, TEST)
    assert not (run / EVALUATION_NAME).exists()


def test_evaluate_run__a_split_with_tags_only_says_so(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "tags"
    (folder / "images").mkdir(parents=True)
    for name in SCENES["train"]:
        (folder / "images" / f"{name}.jpg").write_bytes(
            (data / "tiny" / "JPEGImages" / f"{name}.jpg").read_bytes()
        )
    (folder / "train.csv").write_text("file_name,tags\n" + "".join(f"{n}.jpg,cat\n" for n in SCENES["train"]))
    run = tmp_path / "run"
    split = open_split("tags_train", tmp_path / "data")
    (run / "wsod" / "tags_train").mkdir(parents=True)
    write_results(run / "wsod" / "tags_train" / "detections.json", split, {})
    finish(run, "wsod", "tags_train", ["detections.json"])
    row = evaluate_run(run, tmp_path / "data", "tags_train")["rows"][0]
    assert row["metrics"] == {}
    assert "no boxes or masks" in row["problem"]
