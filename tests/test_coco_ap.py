"""COCO box and mask AP against direct use of pycocotools on files written here."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from stages.core.errors import InputError, SchemaError
from stages.core.evaluation.coco_ap import Backend, IouType, coco_ap
from stages.core.evaluation.ground_truth import ImageGroundTruth
from stages.core.evaluation.mask_ap import images_with_masks, mask_ap
from stages.core.structures.detections import Detections
from tests.evaluation_builders import box_mask, found_boxes, random_case, true_image, with_masks

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)


def has_faster() -> bool:
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        return False
    return True


BACKENDS = [
    "pycocotools",
    pytest.param("faster", marks=pytest.mark.skipif(not has_faster(), reason="extra `fast` is absent")),
]


def xywh(box: Any) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def direct(
    folder: Path,
    detections: Mapping[str, Detections],
    ground_truth: Mapping[str, ImageGroundTruth],
    iou_type: IouType,
    ious: list[float] | None = None,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``stats`` and ``precision`` of COCOeval on a JSON file and ``loadRes``."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, (name, true) in enumerate(sorted(ground_truth.items()), 10):
        images.append({"id": number, "width": true.width, "height": true.height, "file_name": name})
        for i in range(len(true)):
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(true.classes[i]) + 5,
                "bbox": xywh(true.boxes_xyxy[i]),
                "area": xywh(true.boxes_xyxy[i])[2] * xywh(true.boxes_xyxy[i])[3],
                "iscrowd": int(true.crowd[i]),
            }
            if true.masks is not None:
                entry["segmentation"] = true.masks[i]
            annotations.append(entry)
        found = detections.get(name, Detections.empty())
        for i in range(len(found)):
            result: dict[str, Any] = {
                "image_id": number,
                "category_id": int(found.classes[i]) + 5,
                "score": float(found.scores[i]),
            }
            if iou_type == "segm":
                assert found.masks is not None
                result["segmentation"] = found.masks[i]
            else:
                result["bbox"] = xywh(found.boxes_xyxy[i])
            results.append(result)
    categories = [{"id": c + 5, "name": str(c)} for c in range(3)]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        evaluator = COCOeval(coco, coco.loadRes(results), iou_type)
        if ious is not None:
            evaluator.params.iouThrs = np.array(ious)
        evaluator.evaluate()
        evaluator.accumulate()
        if ious is None:
            evaluator.summarize()
    return np.asarray(evaluator.stats), evaluator.eval["precision"]


def crowded(seed: int) -> tuple[dict[str, Detections], dict[str, ImageGroundTruth]]:
    """A random case without difficult objects (COCO has none), where some are crowds, with masks."""
    detections, ground_truth = random_case(seed, distinct_scores=True, ignored=False, images=8, scale=2)
    rng = np.random.default_rng(seed)
    for name, t in ground_truth.items():
        ground_truth[name] = ImageGroundTruth(
            t.width, t.height, t.boxes_xyxy, t.classes, t.difficult, rng.random(len(t)) < 0.2, t.masks
        )
    return with_masks(detections, ground_truth, seed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coco_ap__equals_direct_use(tmp_path: Path, seed: int, iou_type: IouType, backend: Backend) -> None:
    detections, ground_truth = crowded(seed)
    stats, precision = direct(tmp_path, detections, ground_truth, iou_type)
    result = coco_ap(detections, ground_truth, 3, iou_type, backend=backend)
    sizes = [result.by_size[size] for size in ("small", "medium")]
    got = [result.mean, result.mean_at(0.5), result.mean_at(0.75), *(np.nanmean(s) for s in sizes)]
    assert got == pytest.approx(stats[:5].tolist(), abs=1e-9)
    assert 0 < result.mean_at(0.5) < 1  # the case says something
    assert math.isnan(result.by_size["large"].max())
    assert stats[5] == -1
    assert result.mean_recall == pytest.approx(stats[8], abs=1e-9)
    for label in range(2):
        assert result.at(0.5)[label] == pytest.approx(precision[0, :, label, 0, 2].mean())
    assert math.isnan(result.at(0.5)[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_coco_ap__is_quiet(backend: Backend, capsys: pytest.CaptureFixture[str]) -> None:
    coco_ap(*crowded(0), 3, backend=backend)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_coco_ap__difficult_objects_are_ignored(backend: Backend) -> None:
    found = {"p": found_boxes([(0, 0.9, B), (0, 0.7, A)])}
    ground_truth = {"p": true_image([(0, A), (0, B)], difficult=[1])}
    assert coco_ap(found, ground_truth, 1, backend=backend).mean == pytest.approx(1)
    # Unlike a crowd, a difficult object takes one detection only: the second on B is a false positive.
    twice = {"p": found_boxes([(0, 0.9, B), (0, 0.8, B), (0, 0.7, A)])}
    assert coco_ap(twice, ground_truth, 1, backend=backend).mean == pytest.approx(0.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coco_ap__nothing_found_and_nothing_true(backend: Backend) -> None:
    assert coco_ap({}, {"p": true_image([(0, A)])}, 2, backend=backend).mean == 0
    assert math.isnan(
        coco_ap({"p": found_boxes([(0, 0.9, A)])}, {"p": true_image([])}, 2, backend=backend).mean
    )


def test_mask_ap__equals_direct_use_at_its_thresholds(tmp_path: Path) -> None:
    detections, ground_truth = crowded(3)
    _, precision = direct(tmp_path, detections, ground_truth, "segm", [0.25, 0.5, 0.7, 0.75])
    stats, _ = direct(tmp_path, detections, ground_truth, "segm")
    result = mask_ap(detections, ground_truth, 3)
    for i, iou in enumerate((0.25, 0.5, 0.7, 0.75)):
        assert result.coco.mean_at(iou) == pytest.approx(precision[i, :, :2, 0, 2].mean())
    assert result.coco_mean == pytest.approx(stats[0])


def test_mask_ap__voc_area_uses_masks_not_boxes() -> None:
    # The boxes agree, the masks overlap by a third: 50 of 150 pixels.
    left, right = box_mask((0, 0, 10, 10)), box_mask((5, 0, 15, 10))
    ground_truth = {"p": true_image([(0, A)], masks=[left])}
    result = mask_ap({"p": found_boxes([(0, 0.9, A)], masks=[right])}, ground_truth, 1)
    assert result.voc[0.25].mean_area == 1
    assert result.voc[0.5].mean_area == 0
    assert result.coco.mean_at(0.25) == pytest.approx(1)
    assert result.coco.mean_at(0.5) == 0


def test_mask_ap__refuses_what_has_no_or_wrong_masks() -> None:
    ground_truth = {"p": true_image([(0, A)], masks=[box_mask(A)])}
    with pytest.raises(SchemaError, match="no masks"):
        mask_ap({"p": found_boxes([(0, 0.9, A)])}, ground_truth, 1)
    with pytest.raises(SchemaError, match=r"a mask of it 9x9"):
        mask_ap({"p": found_boxes([(0, 0.9, A)], masks=[box_mask((0, 0, 3, 3), (9, 9))])}, ground_truth, 1)
    with pytest.raises(InputError, match=r"ground truth of .* has no masks"):
        mask_ap({"p": found_boxes([(0, 0.9, A)], masks=[box_mask(A)])}, {"p": true_image([(0, A)])}, 1)


def test_images_with_masks__keeps_the_annotated_and_the_empty() -> None:
    ground_truth = {
        "m": true_image([(0, A)], masks=[box_mask(A)]),
        "b": true_image([(0, A)]),
        "e": true_image([]),
    }
    assert list(images_with_masks(ground_truth)) == ["m", "e"]
    assert images_with_masks({"b": ground_truth["b"], "e": ground_truth["e"]}) == {}


def test_box_mask__builder_counts_pixels() -> None:
    assert coco_mask.area(box_mask((1, 2, 4, 6))) == 12
