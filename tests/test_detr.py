"""Detection transformers: losses equal the library's and the equations, drop touches matched queries alone."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.core.backbones.timm_backbones import build_backbone
from stages.core.detectors import detr
from stages.core.detectors.checkpoints import DetectorFile
from stages.core.detectors.detr import COSTS, Detr, build_detr, check_detr, least_side, relative_targets
from stages.core.detectors.detr_losses import LayerOutput, SetOutput, layer_losses, match_queries, set_losses
from stages.core.detectors.fitting import make_optimizer
from stages.core.detectors.inference import detect
from stages.core.detectors.spec import AnyKind, DetrKind, DetrSpec
from stages.core.detectors.two_stage.faster_rcnn import save_detector
from stages.core.errors import ConfigError, EnvironmentFault, SchemaError
from stages.retrain.config import RetrainConfig
from stages.retrain.roi_drop import DropMeter, DropRule

pytest.importorskip("transformers")
CLASSES = ("cat", "dog", "owl")
MASKS: tuple[AnyKind, ...] = ("mask-rcnn",)
KINDS: tuple[DetrKind, ...] = ("rt-detr", "deformable-detr", "dino")
WHOLE: tuple[DetrKind, ...] = ("rt-detr", "deformable-detr")
"""What the library has as a whole, with its loss."""
TINY = DetrSpec(
    backbone="resnet10t", out_strides=(8, 16), freeze_through_stride=8, d_model=32, num_heads=4, dim_feedforward=16,
    num_encoder_layers=1, num_decoder_layers=2, num_queries=9, num_denoising=6, test_short_side=64, max_size=96,
    score_thresh=0.0,
    detections_per_image=6,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def random_backbone(*arguments: Any, **options: Any) -> Any:
        return build_backbone(*arguments, **options | {"pretrained": False})

    monkeypatch.setattr(detr, "build_backbone", random_backbone)


def tiny(kind: DetrKind, seed: int = 0, **changes: object) -> Detr:
    torch.manual_seed(seed)
    model = build_detr(TINY.model_copy(update={"kind": kind, **changes}), CLASSES)
    # Box heads start at zero, where every layer says the same.
    for head in model.network.bbox_embed:
        torch.nn.init.normal_(head.layers[-1].weight, std=0.1)
    return model


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(3)
    images = [torch.rand(3, 64, 64, generator=generator), torch.rand(3, 50, 90, generator=generator)]
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 40, 36], [30, 30, 60, 60]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.tensor([[8.0, 8, 80, 40]]), "labels": torch.tensor([2])},
    ]
    return images, targets


def prepared(model: Detr) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """A batch as the network sees it: pixels, mask of what is image, relative targets."""
    images, targets = batch()
    pixels = torch.zeros(2, 3, 64, 96)
    mask = torch.zeros(2, 64, 96)
    for row, image in enumerate(images):
        pixels[row, :, : image.shape[1], : image.shape[2]] = image
        mask[row, : image.shape[1], : image.shape[2]] = 1
    sizes = [(96, 64)] * 2 if model.spec.kind == "rt-detr" else [(64, 64), (90, 50)]
    frames = torch.tensor([(w, h, w, h) for w, h in sizes], dtype=torch.float32)
    return pixels, mask, relative_targets(targets, frames)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("kind", WHOLE)
def test_set_losses__without_drop_equal_the_librarys(kind: DetrKind) -> None:
    model = tiny(kind).train()
    pixels, mask, wanted = prepared(model)
    torch.manual_seed(1)  # the noise of denoising
    theirs = model.network(pixel_values=pixels, pixel_mask=mask, labels=wanted)
    torch.manual_seed(1)
    output = model.answers(pixels, mask, wanted)
    ours = set_losses(output, wanted, COSTS[kind])
    assert len(output.layers) == 2
    torch.testing.assert_close(total(ours), theirs.loss, rtol=1e-5, atol=1e-5)
    names = {"loss_class", "loss_box", "loss_giou"}
    assert set(ours) == (names | {"loss_proposals", "loss_denoising"} if kind == "rt-detr" else names)
    gradients = [torch.autograd.grad(loss, model.network.class_embed[0].weight)[0] for loss in (total(ours),)]
    assert gradients[0].abs().sum() > 0
    # A rule that drops nothing changes nothing.
    meter = DropMeter(DropRule("paper", 1e9, 1e9))
    torch.testing.assert_close(total(set_losses(output, wanted, COSTS[kind], meter)), total(ours))


def test_set_losses__of_dino_equal_the_librarys() -> None:
    """Its losses are those of Deformable DETR, for chosen cells and restored targets, too."""
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    model = tiny("dino").train()
    pixels, mask, wanted = prepared(model)
    output = model.answers(pixels, mask, wanted)
    library: Any = DeformableDetrImageLoss
    criterion: Any = library(DeformableDetrHungarianMatcher(2, 5, 2), 3, 0.25, ["labels", "boxes"])

    def weighted(layer: LayerOutput, matches: Any = None) -> Tensor:
        outputs = {"logits": layer.logits_BQC, "pred_boxes": layer.boxes_BQ4}
        matches, count = (
            (criterion.matcher(outputs, wanted), 3) if matches is None else (matches, 3 * output.groups)
        )
        losses: dict[str, Tensor] = {}
        for name in ("labels", "boxes"):
            losses |= criterion.get_loss(name, outputs, wanted, matches, count)
        return losses["loss_ce"] + 5 * losses["loss_bbox"] + 2 * losses["loss_giou"]

    assert output.proposals is not None
    ours = set_losses(output, wanted, COSTS["dino"])
    theirs = torch.stack([weighted(layer) for layer in (*output.layers, output.proposals)]).sum()
    noisy = torch.stack([weighted(layer, output.restored) for layer in output.denoising]).sum()
    assert output.groups == 3
    torch.testing.assert_close(total(ours), theirs + noisy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours["loss_denoising"], noisy, rtol=1e-5, atol=1e-5)


def test_dino__noise_does_not_change_the_matching_queries() -> None:
    model = tiny("dino").train()
    pixels, mask, wanted = prepared(model)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        outputs.append(model.answers(pixels, mask, wanted))
    for one, other in zip(outputs[0].layers, outputs[1].layers, strict=True):
        torch.testing.assert_close(one.boxes_BQ4, other.boxes_BQ4)
        torch.testing.assert_close(one.logits_BQC, other.logits_BQC)
    assert not torch.allclose(outputs[0].denoising[0].boxes_BQ4, outputs[1].denoising[0].boxes_BQ4)
    quiet = tiny("dino", num_denoising=0).train()
    quiet.load_state_dict(model.state_dict())
    alone = quiet.answers(pixels, mask, wanted)
    assert not alone.denoising
    torch.testing.assert_close(alone.layers[-1].boxes_BQ4, outputs[0].layers[-1].boxes_BQ4)


@pytest.mark.parametrize("twice", [True, False])
def test_dino__a_layer_learns_from_the_next_one(twice: bool) -> None:
    model = tiny("dino", look_forward_twice=twice).train()
    output = model.answers(*prepared(model))
    slope = torch.autograd.grad(
        output.layers[1].boxes_BQ4.sum(), model.network.bbox_embed[0].layers[-1].weight, allow_unused=True
    )[0]
    assert (slope is not None and bool(slope.abs().sum() > 0)) == twice


def test_dino__queries_start_at_the_cells_of_the_best_class() -> None:
    model = tiny("dino").eval()
    pixels, mask, _ = prepared(model)
    memory = model.network.model.encode(pixels, mask)
    scores_BSC = torch.zeros(2, memory.states_BSD.shape[1], 3)
    scores_BSC[:, 5, 2], scores_BSC[:, 6, 0], scores_BSC[:, 7, :] = 3.0, 2.0, -4.0
    model.network.class_embed[-1] = Constant(scores_BSC)
    chosen = model.network._choose(memory)
    assert chosen.logits_BQC[:, :2].tolist() == [[[0, 0, 3], [2, 0, 0]]] * 2
    assert (chosen.logits_BQC >= 0).all()


class Constant(torch.nn.Module):
    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = values

    def forward(self, states: Tensor) -> Tensor:
        return self.values


def test_dino__four_scales_of_a_resnet50_have_47_7_million_parameters() -> None:
    spec = DetrSpec(
        kind="dino", backbone="resnet50-fpn", dim_feedforward=2048, num_encoder_layers=6, num_queries=900
    )
    with torch.device("meta"):
        model = build_detr(spec, [str(number) for number in range(80)])
    assert sum(values.numel() for values in model.parameters()) == pytest.approx(47.7e6, rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_forward__equals_the_parts(kind: DetrKind) -> None:
    """Normalisation, padding, mask and relative boxes are those of `prepared`."""
    model = tiny(kind, num_denoising=0).train()
    pixels, mask, wanted = prepared(model)
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in (model.transform.image_mean, model.transform.image_std)
    )
    pixels = torch.where(mask[:, None] > 0, (pixels - mean) / std, 0.0)
    expected = set_losses(model.answers(pixels, mask, wanted), wanted, COSTS[kind])
    images, targets = batch()
    found = model(images, targets)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("denoising", [0, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_forward__names_the_same_losses_without_a_target(kind: DetrKind, denoising: int) -> None:
    """A batch can lose all its boxes: those thinner than a pixel are not trained on."""
    model = tiny(kind, num_denoising=denoising).train()
    images, targets = batch()
    none = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * 2
    found, expected = model(images, none), model(images, targets)
    assert list(found) == list(expected)
    total(found).backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(value) and value.requires_grad for value in found.values())


def random_layer(seed: int, images: int = 2, queries: int = 4) -> tuple[LayerOutput, list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> Tensor:
        centres = 0.3 + 0.4 * torch.rand(*shape, 2, generator=generator)
        return torch.cat([centres, 0.05 + 0.5 * torch.rand(*shape, 2, generator=generator)], dim=-1)

    layer = LayerOutput(3 * torch.randn(images, queries, 3, generator=generator), boxes(images, queries))
    targets = [
        {"class_labels": torch.randint(0, 3, (count,), generator=generator), "boxes": boxes(count)}
        for count in (2, 1, 0)[:images]
    ]
    return layer, targets


def slow_giou(one: list[float], other: list[float]) -> tuple[float, float]:
    """(IoU, GIoU) of two boxes given by centre and size, one coordinate at a time."""
    a, b = (
        [c - s / 2 for c, s in zip(x[:2], x[2:], strict=True)]
        + [c + s / 2 for c, s in zip(x[:2], x[2:], strict=True)]
        for x in (one, other)
    )
    shared = hull = 1.0
    for axis in (0, 1):
        shared *= max(0.0, min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]))
        hull *= max(a[axis + 2], b[axis + 2]) - min(a[axis], b[axis])
    union = one[2] * one[3] + other[2] * other[3] - shared
    return shared / union, shared / union - (hull - union) / hull


def slow_losses(
    layer: LayerOutput,
    targets: list[dict[str, Tensor]],
    matches: Any,
    kind: DetrKind,
    tau: tuple[float, float] | None,
) -> dict[str, float]:
    """The set loss and RoI drop from their equations, in loops over numbers."""
    sums = {"loss_class": 0.0, "loss_box": 0.0, "loss_giou": 0.0}
    count = max(1, sum(len(t["class_labels"]) for t in targets))
    for image, (queries, own) in enumerate(matches):
        target_of = dict(zip(queries.tolist(), own.tolist(), strict=True))
        for query in range(layer.logits_BQC.shape[1]):
            logits = layer.logits_BQC[image, query].tolist()
            found = layer.boxes_BQ4[image, query].tolist()
            label, iou, box, giou = -1, 0.0, 0.0, 0.0
            if query in target_of:
                label = int(targets[image]["class_labels"][target_of[query]])
                wanted = targets[image]["boxes"][target_of[query]].tolist()
                iou, overlap = slow_giou(found, wanted)
                box = 5 * sum(abs(f - w) for f, w in zip(found, wanted, strict=True))
                giou = 2 * (1 - overlap)
            value = 0.0
            for index, logit in enumerate(logits):
                p = 1 / (1 + math.exp(-logit))
                if kind == "deformable-detr":
                    value += (
                        -0.25 * (1 - p) ** 2 * math.log(p)
                        if index == label
                        else -0.75 * p**2 * math.log(1 - p)
                    )
                elif index == label:
                    value += iou * (-iou * math.log(p) - (1 - iou) * math.log(1 - p))
                else:
                    value += 0.75 * p**2 * -math.log(1 - p)
            if label >= 0 and tau is not None:
                surprise = math.log(1 + math.exp(-logits[label]))
                if surprise > tau[0] and box + giou > tau[1]:
                    continue
            for name, part in (("loss_class", value), ("loss_box", box), ("loss_giou", giou)):
                sums[name] += part / count
    return sums


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("seed", range(6))
def test_layer_losses__drop_equals_a_slow_recomputation(kind: DetrKind, seed: int) -> None:
    layer, targets = random_layer(seed, images=3)
    matches = match_queries(layer, targets, COSTS[kind])
    assert matches is not None
    for tau in (None, (0.5, 1.5), (0.0, 0.0), (1.0, 0.0)):
        meter = None if tau is None else DropMeter(DropRule("paper", *tau))
        found = layer_losses(layer, targets, matches, COSTS[kind], 3, meter)
        expected = slow_losses(layer, targets, matches, kind, tau)
        assert {k: float(v) for k, v in found.items()} == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_match_queries__is_the_cheapest_of_all_matchings(seed: int) -> None:
    layer, targets = random_layer(seed)
    costs = COSTS["deformable-detr"]
    found = match_queries(layer, targets, costs)
    assert found is not None
    for image, (queries, own) in enumerate(found):
        wanted = targets[image]

        def price(query: int, target: int, image: int = image, wanted: dict[str, Tensor] = wanted) -> float:
            p = 1 / (1 + math.exp(-float(layer.logits_BQC[image, query, wanted["class_labels"][target]])))
            one, other = layer.boxes_BQ4[image, query].tolist(), wanted["boxes"][target].tolist()
            focal = -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)
            l1 = sum(abs(a - b) for a, b in zip(one, other, strict=True))
            cost: float = 2 * focal + 5 * l1 - 2 * slow_giou(one, other)[1]
            return cost

        best = min(
            sum(price(q, t) for t, q in enumerate(chosen))
            for chosen in itertools.permutations(range(4), len(wanted["class_labels"]))
        )
        assert sum(price(q, t) for q, t in zip(queries.tolist(), own.tolist(), strict=True)) == pytest.approx(
            best, abs=1e-4
        )


def test_set_losses__drop_leaves_proposals_and_denoising_alone() -> None:
    layer, targets = random_layer(0)
    early, _ = random_layer(1)
    restored = [(torch.arange(len(t["class_labels"])), torch.arange(len(t["class_labels"]))) for t in targets]
    output = SetOutput([early, layer], proposals=early, denoising=[layer, early], restored=restored)
    costs = COSTS["rt-detr"]
    seen: list[int] = []

    def drop_all(surprise: Tensor, boxes: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(int(foreground.sum()))
        return torch.zeros_like(surprise), torch.zeros_like(boxes)

    kept, dropped = set_losses(output, targets, costs), set_losses(output, targets, costs, drop_all)
    assert seen == [3, 3], "once per decoder layer, matched queries only"
    for name in ("loss_proposals", "loss_denoising"):
        torch.testing.assert_close(dropped[name], kept[name], rtol=0, atol=0)
    assert dropped["loss_box"] == dropped["loss_giou"] == 0
    assert 0 < dropped["loss_class"] < kept["loss_class"], "unmatched queries still learn to be background"


def test_set_losses__no_gradient_through_dropped_queries() -> None:
    layer, targets = random_layer(2)
    logits, boxes = layer.logits_BQC.requires_grad_(), layer.boxes_BQ4.requires_grad_()
    meter = DropMeter(DropRule("paper", 0.0, 0.0))
    total(set_losses(SetOutput([LayerOutput(logits, boxes)]), targets, COSTS["rt-detr"], meter)).backward()  # type: ignore[no-untyped-call]
    assert boxes.grad is not None
    assert logits.grad is not None
    assert boxes.grad.abs().sum() == 0
    rows = logits.grad.abs().sum(dim=2) > 0
    assert int(rows.sum()) == 2 * 4 - 3
    assert [int(count) for count in meter.pop_counts()] == [3, 3]


def test_set_losses__half_precision_is_computed_in_float32() -> None:
    layer, targets = random_layer(0)
    half = LayerOutput(layer.logits_BQC.bfloat16(), layer.boxes_BQ4.bfloat16())
    rounded = LayerOutput(half.logits_BQC.float(), half.boxes_BQ4.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = set_losses(SetOutput([half]), targets, COSTS["rt-detr"])
    expected = set_losses(SetOutput([rounded]), targets, COSTS["rt-detr"])
    for name, value in found.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("where", ["logits", "boxes"])
def test_set_losses__not_finite_is_nan_rather_than_a_crash(where: str) -> None:
    layer, targets = random_layer(0)
    (layer.logits_BQC if where == "logits" else layer.boxes_BQ4)[0, 1, 2] = float("nan")
    assert torch.isnan(total(set_losses(SetOutput([layer]), targets, COSTS["rt-detr"])))
    good, _ = random_layer(1)
    calls: list[int] = []

    def weights(surprise: Tensor, boxes: Tensor, foreground: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(len(surprise))
        return surprise, boxes

    output = SetOutput([good, layer], proposals=good)
    assert torch.isnan(total(set_losses(output, targets, COSTS["rt-detr"], weights)))
    assert calls == [0, 0], "every process asks the rule equally often"


def test_set_losses__images_without_targets() -> None:
    layer, _ = random_layer(0)
    none = [{"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}] * 2
    for kind in KINDS:
        losses = set_losses(
            SetOutput([layer]), none, COSTS[kind], DropMeter(DropRule("percentile", 0.5, 0.5))
        )
        assert losses["loss_class"] > 0
        assert losses["loss_box"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_forward__detections_in_the_pixels_of_each_image(
    kind: DetrKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that answers with the targets gives back the targets, whatever resizing and padding do."""
    model = tiny(kind, test_short_side=96, max_size=128).eval()
    images, targets = batch()
    wanted = [t["boxes"] for t in targets]
    grown = []  # boxes in the resized images, as the network would have to say them
    for image, boxes in zip(images, wanted, strict=True):
        small, large = sorted(image.shape[1:])
        grown.append(boxes * min(96 / small, 128 / large))

    def answers(pixels: Tensor, mask: Tensor, _: None) -> SetOutput:
        sizes = [(pixels.shape[3], pixels.shape[2])] * 2
        if kind != "rt-detr":  # the others know from their mask where the image ends
            sizes = [(int(m.sum(1).max()), int(m.sum(0).max())) for m in mask]
        logits, said = torch.full((2, 9, 3), -9.0), torch.full((2, 9, 4), 0.5)
        for row, (width, height) in enumerate(sizes):
            frame = torch.tensor([[width, height, width, height]], dtype=torch.float32)
            goal = relative_targets([{"boxes": grown[row], "labels": targets[row]["labels"]}], frame)[0]
            for query, (label, box) in enumerate(zip(goal["class_labels"], goal["boxes"], strict=True)):
                logits[row, query, label], said[row, query] = 3.0 - query, box
        return SetOutput([LayerOutput(logits, said)])

    monkeypatch.setattr(model, "answers", answers)
    with torch.no_grad():
        found = model(images)
    for one, boxes, target in zip(found, wanted, targets, strict=True):
        sure = one["scores"] > 0.5
        torch.testing.assert_close(one["boxes"][sure], boxes, rtol=1e-2, atol=0.5)
        assert one["labels"][sure].tolist() == target["labels"].tolist()
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)


def test_forward__deformable_does_not_see_the_padding() -> None:
    model = tiny("deformable-detr").eval()
    images, _ = batch()
    with torch.no_grad():
        alone, together = model([images[1]])[0], model(images)[1]
    # Maps of padded images are a cell larger, so that points are sampled at slightly other places.
    torch.testing.assert_close(alone["scores"], together["scores"], rtol=0.02, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(3, 200), (200, 3), (1, 1), (64, 64)])
def test_forward__any_shape_of_image(kind: DetrKind, size: tuple[int, int]) -> None:
    model = tiny(kind, num_queries=60).eval()
    with torch.no_grad():
        (found,) = model([torch.rand(3, *size)])
    boxes = found["boxes"]
    assert len(boxes) <= 6
    assert (boxes >= 0).all()
    assert (boxes[:, [0, 2]] <= size[1]).all()
    assert (boxes[:, [1, 3]] <= size[0]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_forward__every_parameter_learns(kind: DetrKind) -> None:
    """Nothing of the library is left over without a gradient; the backbone has its own learning rate."""
    model = tiny(kind).train()
    total(model(*batch())).backward()  # type: ignore[no-untyped-call]
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    settings = RetrainConfig(lr=1.0, lr_base_size=4, backbone_lr_factor=0.1)
    optimizer = make_optimizer(model, settings)
    rate_of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    backbone = {id(p) for p in model.network.model.backbone.parameters() if p.requires_grad}
    assert backbone
    assert all(rate == pytest.approx(0.1 if key in backbone else 1.0) for key, rate in rate_of.items())
    assert len(rate_of) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("nms_iou", "kept"), [(1.0, [0, 1, 2, 3]), (0.5, [0, 2, 3])])
def test_forward__nms_per_class_is_a_setting(
    nms_iou: float, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("rt-detr", nms_thresh=nms_iou, num_queries=3, score_thresh=0.3).eval()
    logits = torch.full((1, 3, 3), -9.0)
    logits[0, 0, 0], logits[0, 1, 0], logits[0, 1, 1], logits[0, 2, 0] = 4.0, 3.0, 2.0, 1.0
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.31, 0.3, 0.2, 0.2], [0.7, 0.7, 0.2, 0.2]]])
    monkeypatch.setattr(model, "answers", lambda *_: SetOutput([LayerOutput(logits, boxes)]))
    (found,) = model([torch.rand(3, 64, 64)])
    expected = torch.tensor([4.0, 3.0, 2.0, 1.0]).sigmoid()[kept]  # the second is a double of the first
    torch.testing.assert_close(found["scores"], expected)
    assert found["labels"].tolist() == [[1, 1, 2, 1][i] for i in kept]


@pytest.mark.parametrize("kind", KINDS)
def test_detector_file__same_detections_after_a_round_trip(kind: DetrKind, tmp_path: Path) -> None:
    model, path = tiny(kind).eval(), tmp_path / "detector.safetensors"
    save_detector(path, model, model.spec, CLASSES)
    file = DetectorFile.open(path)
    again = file.model()
    assert again is file.model()
    assert isinstance(again, Detr)
    assert (again.spec, again.classes, again.training) == (model.spec, CLASSES, False)
    pixels = (torch.rand(40, 60, 3) * 255).byte().numpy()
    for mine, theirs in zip(detect(model, pixels).boxes_xyxy, detect(again, pixels).boxes_xyxy, strict=True):
        assert mine.tolist() == theirs.tolist()
    second = tmp_path / "second.safetensors"
    save_detector(second, again, again.spec, CLASSES)
    assert path.read_bytes() == second.read_bytes()
    with pytest.raises(SchemaError, match="classes"):
        file.check(("cat", "dog"))
    with pytest.raises(SchemaError, match=f"trained for model '{kind}'"):
        file.check(CLASSES, MASKS)
    wider = model.spec.model_copy(update={"dim_feedforward": 24})
    save_detector(second, model, wider, CLASSES)
    with pytest.raises(SchemaError, match="tensors do not fit"):
        DetectorFile.open(second).model()
    other: DetrKind = "deformable-detr" if kind == "rt-detr" else "rt-detr"
    save_detector(second, model, model.spec.model_copy(update={"kind": other}), CLASSES)
    with pytest.raises(SchemaError, match="tensors do not fit"):
        DetectorFile.open(second).model()


def test_require_transformers__absent_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match=r'pip install "weaksam\[hf\]"') as caught:
        build_detr(TINY, CLASSES)
    assert caught.value.exit_code == 5


def test_predict__detr_without_the_extra_is_exit_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.datasets_builders import make_image
    from tests.predict_builders import predict

    model, path = tiny("rt-detr"), tmp_path / "detector.safetensors"
    save_detector(path, model, model.spec, CLASSES)
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert predict(make_image(tmp_path / "x.png"), "--detector", path, "--out", tmp_path / "out") == 5
    assert 'pip install "weaksam[hf]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "found out before anything is written"


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"d_model": 48, "kind": "deformable-detr"}, "d_model"),
        ({"d_model": 36, "num_heads": 5}, "d_model"),
        ({"num_queries": 1000}, "num_queries"),
        ({"out_strides": (16, 64)}, "out_strides"),
    ],
)
def test_check_detr__names_the_setting(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        check_detr(TINY.model_copy(update=changes))


def test_least_side__has_a_cell_for_every_query() -> None:
    assert least_side(TINY.model_copy(update={"num_queries": 20})) == 32  # 16 + 4
    assert least_side(TINY.model_copy(update={"num_queries": 21})) == 64


def test_deformable_detr__has_more_queries_than_cells() -> None:
    """They are learnt, not chosen among the cells; nor do thin images need padding."""
    model = tiny("deformable-detr", num_queries=40, test_short_side=32).eval()
    sizes: list[torch.Size] = []
    model.network.model.backbone.backbone.register_forward_pre_hook(
        lambda _, given: sizes.append(given[0].shape)
    )
    assert len(model([torch.rand(3, 4, 60)])[0]["boxes"]) <= TINY.detections_per_image
    assert sizes == [(1, 3, 32, 96)]
