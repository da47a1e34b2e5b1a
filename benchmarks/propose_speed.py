"""Seconds per image of the proposal stage against two other ways, on the same weights and images in one run.

(a) ``published``: our re-enactment of the published procedure - the image is encoded again for every group of
    prompts (4 + 2 per class), one point per decoder call, full-size masks to the CPU, boxes from those.
(b) ``generator``: segment-anything's own ``SamAutomaticMaskGenerator``, for the grid alone.

    python -m benchmarks.propose_speed --data $WEAKSAM_DATA --split shapes_test --segmenter sam-nano
    python -m benchmarks.propose_speed --segmenter sam-vit-b --random --images 1 --grid 8 --drawn

Times are process CPU seconds on a CPU (other programs do not disturb them) and wall seconds on a GPU.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

from benchmarks.clock import Clock
from stages.core.config import load_recipe
from stages.core.datasets.catalog import open_split
from stages.core.datasets.images import load_image
from stages.core.ops.boxes import pairwise_iou
from stages.core.runtime.device import Precision, autocast
from stages.core.runtime.seeding import numpy_generator
from stages.core.segmenters.loading import load_segmenter
from stages.core.segmenters.sam_attention import fuse_attention, library_attention
from stages.core.segmenters.sam_checkpoints import VIT_BUILDERS
from stages.core.segmenters.sam_segmenter import SamSegmenter
from stages.propose.config import ProposeConfig
from stages.propose.decoding import decode_candidates
from stages.propose.proposer import Proposer
from stages.propose.refining import refine

ENCODER_TFLOP = {"sam-vit-b": 0.97, "sam-vit-l": 2.99, "sam-vit-h": 5.96}
"""Arithmetic of one 1024 px encoding, counted from the architecture."""

Image = NDArray[np.uint8]
Rows = dict[str, NDArray[Any]]


def drawn_images(count: int) -> list[Image]:
    """Photo-sized noise, smooth enough to have regions, for runs without data."""
    rng = numpy_generator(0, "speed")
    return [
        np.kron(rng.integers(0, 256, (15, 20, 3), np.uint8), np.ones((25, 25, 1), np.uint8))
        for _ in range(count)
    ]


def prompt_rows(image: Image, classes: int, per_class: int, cross: int) -> Rows:
    """As many peaks as a typical image has, at random places."""
    rng = numpy_generator(1, image.shape[0], image.shape[1])
    kinds = [0] * (classes * per_class) + [1] * (classes * per_class) + [2] * cross
    labels = [c for _ in range(2) for c in range(classes) for _ in range(per_class)] + [-1] * cross
    n = len(kinds)
    return {
        "x": (rng.random(n) * image.shape[1]).astype(np.float32),
        "y": (rng.random(n) * image.shape[0]).astype(np.float32),
        "class_index": np.array(labels, np.int32),
        "score": np.ones(n, np.float32),
        "source": np.array(kinds, np.int8),
    }


def ours(proposer: Proposer, image: Image, rows: Rows, clock: Clock) -> torch.Tensor:
    """The stage's own path, section by section."""
    with torch.inference_mode(), autocast(proposer.device, proposer.precision):
        with clock.section("encode"):
            encoded = proposer.segmenter.encode(image)
        with clock.section("prompt"):
            prompts = proposer.prompts(rows, image.shape[0], image.shape[1])
            found = decode_candidates(
                proposer.segmenter, encoded, prompts, proposer.config, proposer.batch_size
            )
        with clock.section("post"):
            _, kept = refine(
                proposer.segmenter, encoded, prompts, found, proposer.config, proposer.batch_size
            )
            return kept.boxes_xyxy


def published(sam: Any, image: Image, rows: Rows, grid: int, clock: Clock) -> None:
    """Re-enactment: encode per group of prompts, decode point by point, boxes from full-size masks.

    Runs the library as it is, its own attention included.
    """
    with clock.section("prompt"):
        generator = SamAutomaticMaskGenerator(
            sam, grid, 64, pred_iou_thresh=0.3, stability_score_thresh=0.3, box_nms_thresh=0.3
        )
    with clock.section("grid"):
        generator.generate(image)
    predictor = SamPredictor(sam)
    for source in (0, 1, 2):
        members = np.flatnonzero(rows["source"] == source)
        groups = [[int(i)] for i in members]
        _prompt_group(predictor, image, rows, groups, clock)
        for label in np.unique(rows["class_index"][members]) if source < 2 else ():
            group = members[rows["class_index"][members] == label].tolist()
            _prompt_group(predictor, image, rows, [group], clock)


def _prompt_group(
    predictor: SamPredictor, image: Image, rows: Rows, groups: list[list[int]], clock: Clock
) -> None:
    with clock.section("encode"):
        predictor.set_image(image)
    for group in groups:
        with clock.section("prompt"):
            points = np.stack([rows["x"][group], rows["y"][group]], axis=1)
            masks, _, _ = predictor.predict(points, np.ones(len(group)), multimask_output=True)
        with clock.section("post"):
            for mask in masks[1:]:
                ys, xs = np.nonzero(mask)
                if len(xs):
                    (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def generator_boxes(sam: Any, image: Image, config: ProposeConfig) -> torch.Tensor:
    """Boxes of the library's generator at the thresholds of a proposer's grid, as half-open xyxy."""
    generator = SamAutomaticMaskGenerator(
        sam, config.points_per_side, config.prompts_per_batch, pred_iou_thresh=config.pred_iou_thresh,
        stability_score_thresh=config.stability_score_thresh, stability_score_offset=config.stability_score_offset,
        box_nms_thresh=config.box_nms_thresh,
    )  # fmt: skip
    boxes = torch.tensor([m["bbox"] for m in generator.generate(image)], dtype=torch.float32).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:] + 1], dim=1)


def matched_fraction(theirs: torch.Tensor, mine: torch.Tensor) -> float:
    """Fraction of their boxes that one of ours overlaps with an IoU of at least 0.95."""
    if len(theirs) == 0:
        return 1.0
    if len(mine) == 0:
        return 0.0
    return float((pairwise_iou(theirs, mine).amax(dim=1) >= 0.95).float().mean())


def measure(run: Callable[[Image, Clock], object], images: list[Image], device: str) -> dict[str, float]:
    """Mean seconds per image by section."""
    clock = Clock(device)
    for image in images:
        run(image, clock)
    seconds = {name: value / len(images) for name, value in sorted(clock.seconds.items())}
    return {**seconds, "total": sum(seconds.values())}


def build(name: str, checkpoint: Path | None, random: bool, device: str) -> SamSegmenter:
    """A segmenter from a checkpoint, or with random weights.

    Random weights are made to answer: every mask has a predicted IoU near 1 and logits well beyond the cuts of
    stability, so that no mask is spared by a filter. That is the worst case for our way, which draws what passes.
    """
    if random and name in VIT_BUILDERS:
        torch.manual_seed(0)
        sam = sam_model_registry[VIT_BUILDERS[name]]()
        with torch.no_grad():
            sam.mask_decoder.iou_prediction_head.layers[-1].bias.fill_(1.0)
            for network in sam.mask_decoder.output_hypernetworks_mlps:
                network.layers[-1].weight.mul_(150)
        return SamSegmenter(name, sam.to(device))
    segmenter = load_segmenter(name, checkpoint, device)
    assert isinstance(segmenter, SamSegmenter)
    return segmenter


def main() -> None:
    """Measure, print a table, and one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--split", default="shapes_test")
    parser.add_argument("--drawn", action="store_true", help="photo-sized drawn images instead of a split")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--segmenter", default="sam-nano")
    parser.add_argument("--segmenter-weights", type=Path)
    parser.add_argument("--random", action="store_true", help="random weights for a ViT without weights")
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--points", type=int, default=3, help="peaks per class and kind")
    parser.add_argument("--cross", type=int, default=12, help="cross-attention points")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        help="thresholds of the grid and the generator, such as box_nms_thresh=0.7",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of our way")
    parser.add_argument("--compile", action="store_true", help="compile the encoder of our way")
    parser.add_argument(
        "--peak-tflops", type=float, help="of the card; prints the fraction the encoder reaches"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    segmenter = build(options.segmenter, options.segmenter_weights, options.random, options.device)
    if options.compile:
        segmenter.compile()
    clock = Clock(options.device)
    if options.drawn:
        images = drawn_images(options.images)
    else:
        split = open_split(options.split, options.data).limited(options.images)
        with clock.section("decode image"):
            images = [load_image(split.image_path(i)) for i in split.ids]
    report = compare(segmenter, images, options)
    report["decode_image"] = {"total": clock.seconds.get("decode image", 0.0) / len(images)}
    print_report(report)
    print(json.dumps(report))


def compare(
    segmenter: SamSegmenter, images: list[Image], options: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Every way on the same images."""
    grid, device = options.grid, options.device
    precision: Precision = options.precision
    recipe = load_recipe("paper")["propose"]
    settings = {
        "paper": ProposeConfig.model_validate({**recipe, "points_per_side": grid}),
        "improved": ProposeConfig(points_per_side=grid),
        "grid": ProposeConfig.model_validate(
            {**recipe, **_values(options.set), "points_per_side": grid, "prompt_sources": ()}
        ),
    }
    proposers = {name: Proposer(segmenter, config, device, precision) for name, config in settings.items()}
    encodings: list[int] = []
    hook = segmenter.sam.image_encoder.register_forward_hook(lambda *_: encodings.append(1))

    def rows(image: Image) -> Rows:
        return prompt_rows(image, options.classes, options.points, options.cross)

    def run_ours(proposer: Proposer) -> Callable[[Image, Clock], object]:
        return lambda image, clock: ours(proposer, image, rows(image), clock)

    run_ours(proposers["improved"])(images[0], Clock(device))  # warm up
    report: dict[str, dict[str, float]] = {}
    for name in ("improved", "paper", "grid"):
        encodings.clear()
        report[name] = measure(run_ours(proposers[name]), images, device)
        report[name]["encodings"] = len(encodings) / len(images)
        report[name]["images_per_s"] = 1 / report[name]["total"]
        if options.peak_tflops and segmenter.name in ENCODER_TFLOP:
            reached = ENCODER_TFLOP[segmenter.name] / report[name]["encode"]
            report[name]["share_of_peak"] = reached / options.peak_tflops
    report["paper"]["peak_MiB"] = _peak(device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    encodings.clear()
    library_attention(segmenter.sam.image_encoder)
    report["published"] = measure(
        lambda image, c: published(segmenter.sam, image, rows(image), grid, c), images, device
    )
    report["published"]["encodings"] = len(encodings) / len(images)
    report["published"]["peak_MiB"] = _peak(device)
    hook.remove()
    theirs: list[torch.Tensor] = []

    def generate(image: Image, clock: Clock) -> None:
        with clock.section("generate"):
            theirs.append(generator_boxes(segmenter.sam, image, settings["grid"]))

    report["generator"] = measure(generate, images, device)
    fuse_attention(segmenter.sam.image_encoder)
    matched = sum(
        len(boxes) * matched_fraction(boxes, ours(proposers["grid"], image, rows(image), Clock(device)))
        for boxes, image in zip(theirs, images, strict=True)
    )
    count = sum(len(boxes) for boxes in theirs)
    report["ratios"] = {
        "published / paper": report["published"]["total"] / report["paper"]["total"],
        "published / improved": report["published"]["total"] / report["improved"]["total"],
        "generator / grid": report["generator"]["total"] / report["grid"]["total"],
        "generator boxes": count,
        "generator boxes matched": matched / max(count, 1),
    }
    return report


def _values(pairs: list[str]) -> dict[str, float]:
    return {name: float(value) for name, value in (pair.split("=", 1) for pair in pairs)}


def _peak(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def print_report(report: dict[str, dict[str, float]]) -> None:
    """A plain table: one line per way, its sections in seconds per image."""
    for name, values in report.items():
        print(f"{name:14s} " + "  ".join(f"{key} {value:.3f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
