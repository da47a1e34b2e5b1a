"""Proposals from prompts: one encoding, the filters against brute force, and merging."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.core.artifacts.schemas import PROPOSALS, SOURCE_BITS
from stages.core.artifacts.table import gather
from stages.core.config import load_recipe
from stages.core.errors import EnvironmentFault
from stages.core.ops.boxes import pairwise_iou
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.core.structures.rle import decode_masks
from stages.propose.candidates import Candidates
from stages.propose.config import ProposeConfig
from stages.propose.decoding import BatchSize, decode_candidates
from stages.propose.evidence import with_evidence
from stages.propose.grid import grid_points
from stages.propose.logits.mask_boxes import drawn_boxes
from stages.propose.logits.mask_quality import stability_scores, usable
from stages.propose.merging import merge_candidates
from stages.propose.prefetch import Prefetcher
from stages.propose.prompting import Prompts, batches, build_prompts, valid_points
from stages.propose.proposer import Proposer
from stages.propose.refining import refine
from tests.propose_builders import OPEN, PEAKS, boxes_of, prompt_rows
from tests.segmenter_builders import picture, random_sam


def test_grid_points__centres_of_cells() -> None:
    assert grid_points(2, 40, 80).tolist() == [[20, 10], [60, 10], [20, 30], [60, 30]]
    assert grid_points(0, 40, 80).shape == (0, 2)
    tiny = grid_points(32, 1, 3)
    assert (tiny[:, 0] < 3).all()
    assert (tiny[:, 1] < 1).all()


def test_build_prompts__order_groups_and_provenance() -> None:
    prompts = build_prompts(grid_points(1, 48, 60), PEAKS, ("coarse", "fine", "cross"), class_prompts=True)
    assert prompts.source.tolist() == [1, 2, 2, 2, 2, 4, 8, 8]
    assert prompts.class_index.tolist() == [-1, 2, 2, 1, 2, 2, -1, -1]
    # The multi-point prompt of class 2; class 1 has a single point, whose repetition would add nothing.
    assert prompts.points[4].tolist() == [[10, 9], [40, 30]]
    assert [len(p) for p in prompts.points] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert np.isnan(prompts.peak_score[0])
    assert prompts.peak_score[4] == PEAKS["score"][1]


def test_build_prompts__sources_and_groups_can_be_left_out() -> None:
    prompts = build_prompts(grid_points(0, 48, 60), PEAKS, ("coarse",), class_prompts=False)
    assert prompts.source.tolist() == [2, 2, 2]
    assert len(build_prompts(grid_points(0, 4, 4), prompt_rows(), ("fine",), class_prompts=True)) == 0


def test_valid_points__outside_nan_and_unknown_source() -> None:
    rows = prompt_rows(
        (0, 0, 0, 0), (59.9, 47.9, 0, 0), (60, 5, 0, 0), (5, 48, 0, 0), (-0.1, 5, 0, 0), (np.nan, 5, 0, 0),
        (5, np.inf, 0, 0), (5, 5, 0, 3), (5, 5, 0, -1),
    )  # fmt: skip
    assert valid_points(rows, 48, 60).tolist() == [True, True] + [False] * 7


def test_batches__equal_counts_and_every_prompt_once() -> None:
    prompts = build_prompts(grid_points(2, 48, 60), PEAKS, ("coarse", "fine", "cross"), class_prompts=True)
    among = np.ones(len(prompts), dtype=bool)
    found = list(batches(prompts, 3, among))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(prompts)))
    for batch in found:
        assert len(batch) <= 3
        assert len({len(prompts.points[i]) for i in batch}) == 1


def test_propose__one_encoding_for_grid_and_all_prompts() -> None:
    sam = random_sam()
    calls: list[int] = []
    sam.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    proposer = Proposer(SamSegmenter("tiny", sam), OPEN.model_copy(update={"save_masks": True}))
    rows = proposer.propose(picture(), PEAKS)
    assert calls == [1]
    assert set(np.unique(rows.columns["source"])) == {1, 2, 4, 8}


def brute_force(segmenter: SamSegmenter, config: ProposeConfig, prompts: Prompts) -> set[tuple[Any, ...]]:
    """Every mask of every prompt on its own, all filters on all of them."""
    encoded = segmenter.encode(picture())
    found = set()
    for number in range(len(prompts)):
        points = torch.from_numpy(prompts.points[number])[None]
        decoded = segmenter.decode(encoded, points, torch.ones(points.shape[:2]), None, multimask=True)
        full = segmenter.upscale(decoded.low_res_logits[0], encoded)
        boxes, stability = drawn_boxes(full), stability_scores(full, 1.0)
        grid = prompts.source[number] == SOURCE_BITS["grid"]
        for m in config.grid_masks if grid else config.prompt_masks:
            least = config.pred_iou_thresh if grid else config.prompt_pred_iou_thresh
            stable = config.stability_score_thresh if grid else config.prompt_stability_score_thresh
            good = decoded.predicted_iou[0, m] > least and stability[m] >= stable
            if good and usable(boxes[m : m + 1], config.min_side_px, config.min_area_px).item():
                found.add((number, m, *boxes[m].tolist()))
    return found


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_decode_candidates__equals_brute_force(batch: int) -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    encoded = segmenter.encode(picture())
    prompts = build_prompts(grid_points(4, 48, 60), PEAKS, ("coarse", "fine", "cross"), class_prompts=True)
    iou = segmenter.decode(
        encoded, torch.from_numpy(np.stack(prompts.points[:16])), torch.ones(16, 1), None, multimask=True
    ).predicted_iou
    config = replace_config(
        pred_iou_thresh=float(iou[iou > 0].quantile(0.4)), stability_score_thresh=0.28, prompt_pred_iou_thresh=0.3,
        prompt_stability_score_thresh=0.25, prompt_masks=(0, 1), min_side_px=3.0,
    )  # fmt: skip
    expected = brute_force(segmenter, config, prompts)
    found = decode_candidates(segmenter, encoded, prompts, config, BatchSize(batch, LOG))
    got = {
        (p, m, *box)
        for p, m, box in zip(
            found.prompt.tolist(), found.mask_index.tolist(), found.boxes_xyxy.tolist(), strict=True
        )
    }
    assert 3 < len(expected) < 3 * len(prompts)
    assert got == expected
    order = [(p, m) for p, m in zip(found.prompt.tolist(), found.mask_index.tolist(), strict=True)]
    assert order == sorted(order)


def replace_config(**changes: Any) -> ProposeConfig:
    return ProposeConfig.model_validate({**OPEN.model_dump(), **changes})


class Log:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str, *values: object) -> None:
        self.warnings.append(text % values)


LOG: Any = Log()


def test_batch_size__halves_until_it_fits() -> None:
    log: Any = Log()
    size = BatchSize(64, log)

    def work(count: int) -> int:
        if count > 20:
            raise torch.cuda.OutOfMemoryError("full")
        return count

    assert size.attempt(work) == 16
    assert size.size == 16
    assert log.warnings == ["out of GPU memory: going on with 32 prompts per batch",
                            "out of GPU memory: going on with 16 prompts per batch"]  # fmt: skip

    def hopeless(count: int) -> int:
        raise torch.cuda.OutOfMemoryError("full")

    with pytest.raises(EnvironmentFault, match="one prompt does not fit"):
        size.attempt(hopeless)


def test_decode_candidates__out_of_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    encoded = segmenter.encode(picture())
    prompts = build_prompts(grid_points(3, 48, 60), PEAKS, ("coarse", "fine", "cross"), class_prompts=True)
    whole = decode_candidates(segmenter, encoded, prompts, OPEN, BatchSize(64, LOG))
    decode, seen = segmenter.decode_above, []

    def small_memory(encoded: Any, points: Tensor, *rest: Any, **named: Any) -> Any:
        if len(points) > 4:
            raise torch.cuda.OutOfMemoryError("full")
        seen.append(len(points))
        return decode(encoded, points, *rest, **named)

    monkeypatch.setattr(segmenter, "decode_above", small_memory)
    again = decode_candidates(segmenter, encoded, prompts, OPEN, BatchSize(64, LOG))
    assert sum(seen) == len(prompts), "a batch was decoded twice"
    assert torch.equal(again.prompt, whole.prompt)
    torch.testing.assert_close(again.boxes_xyxy, whole.boxes_xyxy, atol=1.0, rtol=0)


def test_decode_candidates__memory_does_not_grow_with_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of one batch are alive at a time, whatever the number of prompts; a candidate is a few numbers."""
    segmenter = SamSegmenter("tiny", random_sam())
    encoded = segmenter.encode(picture())
    decode = segmenter.decode_above
    alive: list[weakref.ReferenceType[Tensor]] = []
    peaks: list[int] = []

    def watched(*values: Any, **named: Any) -> Any:
        drawn = decode(*values, **named)
        alive.append(weakref.ref(drawn.logits_NHW))
        peaks.append(sum(len(logits) for ref in alive if (logits := ref()) is not None))
        return drawn

    monkeypatch.setattr(segmenter, "decode_above", watched)
    most = {}
    for side in (3, 12):
        peaks.clear()
        prompts = build_prompts(grid_points(side, 48, 60), prompt_rows(), (), class_prompts=False)
        found = decode_candidates(segmenter, encoded, prompts, OPEN, BatchSize(8, LOG))
        most[side] = max(peaks)
        assert len(found) > 2 * side**2
    assert most == {3: 3 * 8, 12: 3 * 8}


def test_propose__half_precision_finds_about_the_same_boxes() -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    config = replace_config(min_side_px=8.0)
    whole = torch.from_numpy(boxes_of(Proposer(segmenter, config).propose(picture(), PEAKS)))
    half = torch.from_numpy(boxes_of(Proposer(segmenter, config, precision="bf16").propose(picture(), PEAKS)))
    assert abs(len(whole) - len(half)) <= 2
    assert float((pairwise_iou(whole, half).amax(dim=1) > 0.8).float().mean()) > 0.8


def candidates(boxes: list[list[float]], scores: list[float], sources: list[str]) -> Candidates:
    n = len(boxes)
    return Candidates(
        boxes_xyxy=torch.tensor(boxes), predicted_iou=torch.tensor(scores), stability=torch.ones(n),
        prompt=torch.arange(n), mask_index=torch.zeros(n, dtype=torch.int8),
        source=torch.tensor([SOURCE_BITS[s] for s in sources], dtype=torch.int8),
        class_index=torch.arange(n, dtype=torch.int32), peak_score=torch.linspace(0, 1, n),
    )  # fmt: skip


SAME = [0.0, 0, 10, 10]
NEAR = [0.0, 0, 10, 11]
FAR = [50.0, 50, 80, 80]


def test_merge_candidates__union_merges_provenance() -> None:
    given = candidates([SAME, NEAR, SAME, FAR], [0.5, 0.9, 0.4, 0.1], ["grid", "coarse", "cross", "fine"])
    merged = merge_candidates(given, replace_config(union_nms_thresh=0.7))
    assert merged.source.tolist() == [1 | 2 | 8, 4]
    assert merged.class_index.tolist() == [1, 3], "class and peak are those of the surviving box"
    assert merged.predicted_iou.tolist() == pytest.approx([0.9, 0.1])


def test_merge_candidates__paper_leaves_other_sources_alone() -> None:
    config = ProposeConfig.model_validate(load_recipe("paper")["propose"])
    given = candidates(
        [SAME, NEAR, NEAR, SAME, SAME, NEAR, SAME, FAR], [0.1, 0.9, 0.5, 0.5, 0.5, 0.1, 0.9, 0.5],
        ["grid", "grid", "coarse", "coarse", "fine", "cross", "cross", "cross"],
    )  # fmt: skip
    merged = merge_candidates(given, config)
    # Grid: the better of two. Coarse and fine: as they are. Cross: NEAR comes first and outlives SAME.
    assert merged.source.tolist() == [1, 2, 2, 4, 8, 8]
    assert merged.boxes_xyxy.tolist() == [NEAR, NEAR, SAME, SAME, NEAR, FAR]
    by_score = merge_candidates(given, config.model_copy(update={"cross_nms_by": "rank"}))
    assert by_score.boxes_xyxy.tolist()[4:] == [SAME, FAR]


def test_merge_candidates__quality_prefers_the_sharper_mask() -> None:
    given = candidates([SAME, NEAR], [0.9, 0.8], ["grid", "grid"])
    given = replace(given, stability=torch.tensor([0.5, 0.9]))
    by_quality = merge_candidates(given, replace_config(union_nms_thresh=0.7, rank_by="quality"))
    by_iou = merge_candidates(given, replace_config(union_nms_thresh=0.7, rank_by="predicted_iou"))
    assert (by_quality.boxes_xyxy.tolist(), by_iou.boxes_xyxy.tolist()) == ([NEAR], [SAME])


def test_merge_candidates__cap_keeps_the_best() -> None:
    given = candidates([SAME, FAR, NEAR], [0.2, 0.9, 0.5], ["grid", "coarse", "fine"])
    merged = merge_candidates(given, replace_config(max_proposals=2))
    assert merged.prompt.tolist() == [1, 2]
    assert (
        len(merge_candidates(Candidates.empty(), replace_config(max_proposals=2, union_nms_thresh=0.5))) == 0
    )


@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 1), (400, 10_000), (48, 60)])
def test_propose__any_size_and_no_prompts(height: int, width: int) -> None:
    proposer = Proposer(SamSegmenter("tiny", random_sam()), replace_config(min_side_px=0.0))
    rows = proposer.propose(picture(height, width), prompt_rows())
    boxes = boxes_of(rows)
    assert len(boxes) > 0
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] <= width).all()
    assert (boxes[:, 3] <= height).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert set(rows.columns["source"].tolist()) == {1}
    assert rows.image_columns == {"image_h": height, "image_w": width}


def test_propose__bad_prompts_change_nothing() -> None:
    proposer = Proposer(SamSegmenter("tiny", random_sam()), OPEN)
    bad = prompt_rows((np.nan, 3, 0, 0), (500, 3, 0, 1), (3, -7, 0, 2))
    mixed = {name: np.concatenate([PEAKS[name], bad[name]]) for name in PEAKS}
    clean, dirty = proposer.propose(picture(), PEAKS), proposer.propose(picture(), mixed)
    assert np.array_equal(boxes_of(clean), boxes_of(dirty))


@pytest.mark.parametrize("asked", [1, 7, 500])
def test_refine__best_boxes_are_asked_again_and_keep_their_provenance(asked: int) -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    encoded = segmenter.encode(picture())
    prompts = build_prompts(grid_points(4, 48, 60), PEAKS, ("coarse", "fine", "cross"), class_prompts=True)
    config = replace_config(
        refine_top_k=asked, refine_nms_thresh=1.0, prompt_pred_iou_thresh=0.2, pred_iou_thresh=0.2
    )
    first = decode_candidates(segmenter, encoded, prompts, config, BatchSize(64, LOG))
    best = merge_candidates(first, replace_config(max_proposals=asked))
    everything, found = refine(segmenter, encoded, prompts, first, config, BatchSize(3, LOG))
    assert len(everything) == len(prompts) + len(best)
    assert len(best) <= asked
    expected = set()
    for number, box in enumerate(best.boxes_xyxy):
        decoded = segmenter.decode(encoded, None, None, box[None], multimask=True)
        full = segmenter.upscale(decoded.low_res_logits[0], encoded)
        for m, drawn in enumerate(drawn_boxes(full)):
            if decoded.predicted_iou[0, m] > 0.2 and usable(drawn[None], 1.0, 0.0).item():
                expected.add((len(prompts) + number, m, *drawn.tolist(), int(best.source[number])))
    columns = (found.prompt, found.mask_index, *found.boxes_xyxy.unbind(1), found.source)
    assert set(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert len(expected) > 0
    assert asked < 500 or len({source for *_, source in expected}) > 1


def test_refine__off_or_nothing_to_refine() -> None:
    segmenter = SamSegmenter("tiny", random_sam())
    encoded, size = segmenter.encode(picture()), BatchSize(64, LOG)
    prompts = build_prompts(grid_points(4, 48, 60), PEAKS, ("coarse",), class_prompts=False)
    first = decode_candidates(segmenter, encoded, prompts, OPEN, size)
    same, found = refine(segmenter, encoded, prompts, first, OPEN, size)
    assert same is prompts
    assert torch.equal(found.boxes_xyxy, first.boxes_xyxy)
    hopeless = replace_config(refine_top_k=5, min_side_px=1000.0)
    nothing = decode_candidates(segmenter, encoded, prompts, hopeless, size)
    assert len(refine(segmenter, encoded, prompts, nothing, hopeless, size)[1]) == 0


@pytest.mark.parametrize("asked", [0, 20])
def test_propose__masks_fit_their_boxes(asked: int) -> None:
    config = replace_config(save_masks=True, min_side_px=6.0, refine_top_k=asked)
    proposer = Proposer(SamSegmenter("tiny", random_sam()), config)
    rows = proposer.propose(picture(), PEAKS)
    plain = replace_config(min_side_px=6.0, refine_top_k=asked)
    without = Proposer(SamSegmenter("tiny", random_sam()), plain).propose(picture(), PEAKS)
    assert np.array_equal(boxes_of(rows), boxes_of(without))
    gather(PROPOSALS, {"a": with_evidence(rows, None, "a")})  # every row has its pool item
    rles: list[Any] = [
        {"size": [48, 60], "counts": values.tobytes().decode("ascii")} for values in rows.pools["rle"]
    ]
    masks = decode_masks(rles, 48, 60)
    assert len(masks) == len(boxes_of(rows)) > 0
    for mask, box in zip(masks, boxes_of(rows), strict=True):
        ys, xs = np.nonzero(mask)
        exact = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert box.tolist() == exact


def test_prefetcher__order_errors_and_strays() -> None:
    loaded: list[str] = []

    def load(item: str) -> str:
        loaded.append(item)
        if item == "c":
            raise ValueError("bad c")
        return item.upper()

    images = Prefetcher(tuple("abcdef"), load, 2)
    assert images.get("a") == "A"
    assert images.get("b") == "B"
    with pytest.raises(ValueError, match="bad c"):
        images.get("c")
    assert images.get("f") == "F"
    assert images.get("d") == "D"
    assert Prefetcher(tuple("ab"), str.upper, 0).get("b") == "B"


@pytest.mark.parametrize(
    "values",
    [
        {"grid_masks": ()},
        {"prompt_masks": (0, 3)},
        {"grid_masks": (1, 1)},
        {"union_nms_thresh": 0.0},
        {"points_per_side": 0, "prompt_sources": ()},
        {"prompt_sources": ("coarse", "grid")},
        {"min_side_px": -1},
    ],
)
def test_config__rejects(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ProposeConfig.model_validate(values)


def test_config__paper_is_the_published_table() -> None:
    paper = ProposeConfig.model_validate(load_recipe("paper")["propose"])
    assert (
        paper.points_per_side,
        paper.pred_iou_thresh,
        paper.stability_score_thresh,
        paper.box_nms_thresh,
    ) == (
        32,
        0.3,
        0.3,
        0.3,
    )
    assert (paper.prompt_masks, paper.cross_nms_thresh, paper.cross_nms_by, paper.union_nms_thresh) == (
        (1, 2),
        0.9,
        "order",
        1.0,
    )
