"""The recipes voc07, voc12 and coco14 against the parameter tables of the method's specification.

The tables are written down here as the publication and its release give them (steps, learning rates, image
counts); the recipes say the same in passes and shares.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.core.artifacts.schemas import PROMPTS
from stages.core.artifacts.table import ImageRows, gather, write_table
from stages.core.config import config_class, load_config_file, load_recipe
from stages.core.errors import ConfigError
from tests.datasets_builders import HEIGHT, WIDTH, make_voc
from tests.propose_builders import prompt_rows
from weaksam_cli import main as entry_point
from weaksam_cli.options import Options
from weaksam_cli.stage_command import resolve_settings, stage_request

RECIPES = ("voc07", "voc12", "coco14")


def settings(stage: str, recipe: str) -> dict[str, Any]:
    return dict(resolve_settings(stage, config_class(stage), recipe, None, [], {}).named_values())


def within(group: str, table: dict[str, Any]) -> dict[str, Any]:
    return {f"{group}.{name}": value for name, value in table.items()}


def agree(found: dict[str, Any], table: dict[str, Any]) -> None:
    assert {key: found[key] for key in table} == table


# The proposal half: one table, the same for all three data sets but for the classifier's class count.
PROPOSAL_TABLE: dict[str, dict[str, Any]] = {
    "cam": {
        "architecture": "vit", "backbone": "deit_small_patch16_224", "pretrained": True, "train_crop_size": 224,
        "batch_size": 64, "epochs": 60,
        "weight_decay": 0.03, "val_fraction": 0.0, "warmup_prefix": False, "crop_aspect": "square",
        "train_interpolation": "bicubic", "pos_embed_interpolation": "offset",
        "min_crop_area_fraction": 0.08, "attention_fusion": "mean",
        "affinity": "attention",
        "tta_scales": (1.0, 0.8, 1.2), "tta_hflip": True, "test_logit_thresh": -0.5,
        "cross_layers": tuple(range(4, 12)),
    },
    "prompt": {
        "resolution": "image", "window_px": 17, "cross_window_px": 129, "peak_thresh": 0.90, "cross_peak_thresh": 0.90,
        "max_peaks_per_map": 25, "clustering": "kmeans",
    },
    "propose": {
        "segmenter": "sam-vit-h", "points_per_side": 32, "prompts_per_batch": 64, "pred_iou_thresh": 0.3,
        "stability_score_thresh": 0.3, "stability_score_offset": 1.0, "box_nms_thresh": 0.3, "grid_masks": (0, 1, 2),
        "prompt_masks": (1, 2), "prompt_pred_iou_thresh": 0.0, "prompt_stability_score_thresh": 0.0,
        "class_prompts": True,
        "cross_nms_thresh": 0.9, "cross_nms_by": "order", "union_nms_thresh": 1.0, "max_proposals": 0,
        "min_area_px": 0.0,
        "prompt_sources": ("coarse", "fine", "cross"),
    },
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stage", PROPOSAL_TABLE)
def test_recipe__proposal_table(recipe: str, stage: str) -> None:
    agree(settings(stage, recipe), PROPOSAL_TABLE[stage])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe__classifier_warms_up_for_five_epochs(recipe: str) -> None:
    cam = settings("cam", recipe)
    assert cam["warmup_fraction"] * cam["epochs"] == pytest.approx(5, abs=0.05)
    assert "backbone_lr_factor" not in cam, "one rate for the whole transformer"
    assert cam["lr"] == pytest.approx((2e-4 if recipe == "coco14" else 6e-4) * 64 / 512)
    assert cam["lr"] * cam["warmup_factor"] == pytest.approx(1e-6, rel=1e-3)
    assert cam["lr"] * cam["min_lr_factor"] == pytest.approx(1e-5, rel=1e-3)
    assert (cam["randaugment"], cam["random_erase_prob"]) == ("rand-m9-mstd0.5-inc1", 0.25)


MIST_TABLE: dict[str, Any] = {
    "method": "mist", "backbone": "vgg16-d8", "pooler_type": "roi_pool", "fc_dim": 4096, "mist.top_fraction": 0.15,
    "mist.seed_nms_thresh": 0.2,
    "fg_iou_thresh": 0.5, "num_refinements": 3, "refine_loss_weights": (3.0, 1.0, 1.0), "optimizer": "adam", "lr": 1e-5,
    "backbone_lr_factor": 1.0, "bias_lr_factor": 2.0, "weight_decay": 5e-4, "batch_size": 8, "dropblock": True,
    "dropblock_max_fraction": 0.3, "dropblock_weight": 0.01, "train_short_sides": (480, 576, 688, 864, 1000, 1200),
    "max_size": 2000, "hflip_prob": 0.5, "lighting_std": 0.1, "test_short_side": 800, "tta": True, "nms_thresh": 0.3,
    "score_thresh": 0.0, "detections_per_image": 100, "background_class": True, "final_relu": False,
    "freeze_through_stride": 4,
    "freeze_bn": True, "out_strides": (8,), "fused_channels": 0, "pooler_resolution": 7, "dropout": 0.5,
    "init_std": 0.001,
    "mist.regression": True, "dropblock_form": "two_step", "mist.min_score_ratio": 0.0,
    "mist.container_score_ratio": 0.0, "ignore_iou_thresh": 0.0,
    "seed_weights": "score", "tie_break_by_score": False, "bce_reduction": "mean", "grad_accum_steps": 1,
    "clip_grad_norm": 0.0,
    "ema_decay": 0.0, "color_jitter": 0.0, "dedup_grid_px": 0.0, "quality_power": 0.0,
}  # fmt: skip
DROPPER_LR = {"voc07": 1e-5, "voc12": 1e-5, "coco14": 1e-3}
DETECTOR_TABLE: dict[str, Any] = {
    "backbone": "resnet50-fpn", "freeze_through_stride": 4, "optimizer": "sgd", "weight_decay": 1e-4, "hflip_prob": 0.5,
    "batch_size": 16, "lr_base_size": 16, "nms_thresh": 0.5, "score_thresh": 0.05, "detections_per_image": 100,
    "decay_biases": True,
}  # fmt: skip
TWO_STAGE_TABLE: dict[str, Any] = {
    "anchor_sizes": (32, 64, 128, 256, 512), "aspect_ratios": (0.5, 1.0, 2.0), "box_batch_size_per_image": 512,
    "matcher": "iou", "rpn_box_loss": "l1", "sampling_ratio": 0, "predictor_init": "normal",
}  # fmt: skip
TTA_SIZES = {
    "voc07": (480, 576, 688, 864, 1000, 1800),
    "voc12": (480, 576, 688, 864, 1000, 1200),
    "coco14": tuple(range(480, 1217, 32)),
}
"""Each plain and mirrored: 12, 12 and 48 views."""
VOC_SIZES, COCO_SIZES = tuple(range(480, 1217, 32)), tuple(range(640, 801, 32))


@dataclass(frozen=True)
class Schedule:
    """Steps as published."""

    images: int
    steps: int
    drops: tuple[int, int]
    warmup: int

    def check(self, found: dict[str, Any]) -> None:
        """The recipe's passes and shares are these steps, to half a pass and to the digits it writes."""
        assert found["epochs"] == round(self.steps * found["batch_size"] / self.images)
        assert found["schedule"] == "multistep"
        shares = [drop / self.steps for drop in self.drops]
        assert list(found["milestones"]) == pytest.approx(shares, abs=2e-3)
        assert found["warmup_fraction"] == pytest.approx(self.warmup / self.steps, rel=0.02)


VOC07, VOC12, COCO14, VOC12_AUG = 5_011, 11_540, 82_081, 10_582  # COCO14: those with objects
MIST: dict[str, tuple[Schedule, float]] = {  # schedule, smallest proposal side
    "voc07": (Schedule(VOC07, 30_000, (20_000, 26_700), 200), 20.0),
    "voc12": (Schedule(VOC12, 32_000, (20_000, 26_700), 200), 20.0),
    "coco14": (Schedule(COCO14, 125_000, (82_500, 115_000), 500), 2.0),
}
RETRAIN: dict[str, tuple[Schedule, dict[str, Any], int | None]] = {  # schedule, the rest, first step with drop
    "voc07": (
        Schedule(VOC07, 9_000, (6_000, 8_000), 30),
        {"lr": 0.02, "train_short_sides": VOC_SIZES, "test_short_side": 688, "max_size": 2000,
         "tau_cls": 4.0, "tau_reg": 4.0},
        2_000,
    ),
    "voc12": (
        Schedule(VOC12, 16_000, (10_000, 14_000), 60),
        {"lr": 0.015, "train_short_sides": VOC_SIZES, "test_short_side": 688, "max_size": 2000},
        None,
    ),
    "coco14": (
        Schedule(COCO14, 85_000, (55_000, 75_000), 1_000),
        {"lr": 0.02, "train_short_sides": COCO_SIZES, "test_short_side": 800, "max_size": 1333,
         "tau_cls": 5.0, "tau_reg": 4.0},
        10_000,
    ),
}  # fmt: skip
MASKS: dict[str, Schedule] = {
    "voc07": Schedule(VOC12_AUG, 9_000, (6_000, 8_000), 1_000),  # none published on VOC07
    "voc12": Schedule(VOC12_AUG, 9_000, (6_000, 8_000), 1_000),
    "coco14": Schedule(COCO14, 90_000, (60_000, 80_000), 1_000),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe__wsod_table(recipe: str) -> None:
    found = settings("wsod", recipe)
    agree(found, MIST_TABLE)
    schedule, min_side = MIST[recipe]
    schedule.check(found)
    assert found["min_side_px"] == min_side
    assert found["warmup_factor"] == pytest.approx(1 / 3, abs=1e-3)
    assert found["lr"] * found["dropblock_lr_factor"] == pytest.approx(DROPPER_LR[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe__pgt_table(recipe: str) -> None:
    # tau_s of VOC12 and COCO14 is not published: VOC07's.
    agree(settings("pgt", recipe), {"mode": "paper", "tau_s": 0.3, "tau_o": 0.85})


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe__retrain_table(recipe: str) -> None:
    found = settings("retrain", recipe)
    schedule, rest, first_drop = RETRAIN[recipe]
    agree(found, DETECTOR_TABLE | within("faster_rcnn", TWO_STAGE_TABLE) | rest)
    assert found["tta"], "the published figures are with it"
    assert found["tta_short_sides"] == TTA_SIZES[recipe]
    schedule.check(found)
    assert found["roi_drop"] == ("off" if first_drop is None else "paper")
    if first_drop is not None:
        assert found["roi_drop_start_fraction"] == pytest.approx(first_drop / schedule.steps, abs=3e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe__wsis_table(recipe: str) -> None:
    found = settings("wsis", recipe)
    sizes = {"train_short_sides": COCO_SIZES, "test_short_side": 800, "max_size": 1333}
    agree(found, DETECTOR_TABLE | within("mask_rcnn", TWO_STAGE_TABLE) | sizes)
    agree(found, {"lr": 0.02, "segmenter": "sam-vit-h", "mask_choice": "single"})
    MASKS[recipe].check(found)


OICR_TABLE: dict[str, Any] = {
    "method": "oicr", "backbone": "vgg16-d8", "pooler_type": "roi_pool", "fc_dim": 4096, "final_relu": True,
    "background_class": False, "init_std": 0.01, "dropblock": False, "num_refinements": 3,
    "refine_loss_weights": (1.0, 1.0, 1.0), "oicr.miner": "near_top", "oicr.min_score_ratio": 0.9,
    "oicr.seed_nms_thresh": 0.5, "oicr.class_agnostic_nms": True, "fg_iou_thresh": 0.5, "ignore_iou_thresh": 0.0,
    "seed_weights": "score", "bce_reduction": "sum", "optimizer": "adam", "refine_lr_factor": 10.0,
    "bias_lr_factor": 2.0, "weight_decay": 5e-4, "batch_size": 4, "warmup_factor": 0.001, "max_size": 2000,
    "hflip_prob": 0.5, "lighting_std": 0.0, "color_jitter": 0.0, "min_side_px": 20.0, "dedup_grid_px": 8.0,
    "tta": True, "tta_hflip": False, "nms_thresh": 0.3, "score_thresh": 0.0, "detections_per_image": 100,
    "quality_power": 0.0,
}  # fmt: skip
OICR: dict[str, dict[str, Any]] = {
    "oicr-voc07": {"lr": 8e-6, "epochs": 50, "milestones": (36 / 50,)},
    "oicr-voc12": {"lr": 8e-6, "epochs": 25, "milestones": (18 / 25,)},
    "oicr-coco14": {"lr": 1e-5, "epochs": 12, "milestones": (8 / 12, 11 / 12)},
}
OICR_IMAGES = {"oicr-voc07": VOC07, "oicr-voc12": VOC12, "oicr-coco14": COCO14}


@pytest.mark.parametrize("recipe", OICR)
def test_recipe__oicr_table(recipe: str) -> None:
    found, table = settings("wsod", recipe), OICR[recipe]
    sizes = (480, 576, 688, 864, 1000, 1200) if recipe == "oicr-coco14" else (488, 576, 688, 864, 1200)
    agree(
        found, OICR_TABLE | {"train_short_sides": sizes, "test_short_side": sizes[0], "tta_short_sides": ()}
    )
    assert (found["lr"], found["epochs"]) == (table["lr"], table["epochs"])
    assert list(found["milestones"]) == pytest.approx(table["milestones"], abs=1e-3)
    steps = table["epochs"] * (OICR_IMAGES[recipe] // 4)
    assert found["warmup_fraction"] * steps == pytest.approx(500, rel=0.02)
    data_set = recipe.removeprefix("oicr-")
    for stage in ("cam", "prompt", "propose", "pgt", "retrain", "wsis"):
        assert settings(stage, recipe) == settings(stage, data_set), stage


DINO_TABLE: dict[str, Any] = {
    "architecture": "dino", "backbone": "resnet50-fpn", "out_strides": (8, 16, 32), "freeze_through_stride": 4,
    "test_short_side": 800, "max_size": 1333, "optimizer": "adamw", "backbone_lr_factor": 0.1, "clip_grad_norm": 0.1,
    "batch_size": 16, "lr_base_size": 16, "tta_short_sides": (488, 576, 688, 864, 1200), "detections_per_image": 300,
    "nms_thresh": 1.0, "score_thresh": 0.0, "color_jitter": 0.0, "ema_decay": 0.0, "dino.d_model": 256,
    "dino.num_heads": 8, "dino.dim_feedforward": 2048, "dino.num_encoder_layers": 6, "dino.num_decoder_layers": 6,
    "dino.num_queries": 900, "dino.num_denoising": 100, "dino.look_forward_twice": True,
}  # fmt: skip
VOC_DINO = {"train_short_sides": tuple(range(480, 801, 32)), "min_box_side_px": 32.0}
DINO: dict[str, tuple[dict[str, Any], list[float]]] = {
    "dino-voc07": (
        {"lr": 9e-5, "weight_decay": 1e-4, "epochs": 14 * 3} | VOC_DINO,
        [8 / 14, 10 / 14, 12 / 14],
    ),
    "dino-voc12": ({"lr": 8e-5, "weight_decay": 3e-4, "epochs": 12 * 3} | VOC_DINO, [8 / 12, 10 / 12]),
    "dino-coco14": (
        {"lr": 1e-4, "weight_decay": 1e-4, "epochs": 12, "train_short_sides": (800,), "min_box_side_px": 0.0},
        [8 / 12, 11 / 12],
    ),
}


@pytest.mark.parametrize("recipe", DINO)
def test_recipe__dino_table(recipe: str) -> None:
    found = settings("retrain", recipe)
    table, milestones = DINO[recipe]
    agree(found, DINO_TABLE | table)
    assert list(found["milestones"]) == pytest.approx(milestones, abs=1e-3)
    data_set = recipe.removeprefix("dino-")
    for stage in ("cam", "prompt", "propose", "wsod", "pgt", "wsis"):
        assert settings(stage, recipe) == settings(stage, data_set), stage


MASK2FORMER_TABLE: dict[str, Any] = {
    "architecture": "mask2former", "backbone": "resnet50-fpn", "out_strides": (4, 8, 16, 32),
    "freeze_through_stride": 0, "crop_size": 1024, "optimizer": "adamw", "lr": 1e-4, "batch_size": 16,
    "lr_base_size": 16, "backbone_lr_factor": 0.1, "weight_decay": 0.05, "clip_grad_norm": 0.01,
    "warmup_fraction": 0.0, "ema_decay": 0.0, "color_jitter": 0.0, "epochs": 50, "test_short_side": 800,
    "max_size": 1333, "detections_per_image": 100, "mask2former.num_queries": 100, "mask2former.d_model": 256,
    "mask2former.num_decoder_layers": 9, "mask2former.num_encoder_layers": 6, "mask2former.dim_feedforward": 2048,
    "mask2former.encoder_dim_feedforward": 1024, "mask2former.num_points": 12544, "mask2former.num_heads": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "images", "steps", "drops"),
    [
        ("mask2former-voc12", VOC12_AUG, 33_069, (29_395, 31_844)),
        ("mask2former-coco17", 118_287, 368_750, (327_778, 355_092)),
    ],
)
def test_recipe__mask2former_table(recipe: str, images: int, steps: int, drops: tuple[int, int]) -> None:
    found = settings("wsis", recipe)
    agree(found, MASK2FORMER_TABLE)
    assert list(found["milestones"]) == pytest.approx([drop / steps for drop in drops], abs=1e-3)
    assert found["epochs"] * (images // 16) == pytest.approx(steps, rel=0.003)
    assert settings("wsod", recipe) == settings("wsod", recipe.removeprefix("mask2former-"))


def test_recipe__masks_on_coco17_have_the_published_steps() -> None:
    Schedule(118_287, 90_000, (60_000, 80_000), 1_000).check(settings("wsis", "coco17"))


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        (["--recipe", "voc07"], "fp32"),
        (["--recipe", "coco14"], "fp32"),
        (["--recipe", "dino-voc12"], "fp32"),
        (["--recipe", "voc12", "--precision", "bf16"], "bf16"),
        (["--recipe", "shapes"], "auto"),
        ([], "auto"),
    ],
)
def test_recipe__published_ones_run_in_float32(words: list[str], precision: str) -> None:
    options: dict[str, Any] = dict(zip(words[::2], words[1::2], strict=True))
    asked = Options(
        split="voc07_train", recipe=options.get("--recipe"), precision=options.get("--precision", "auto")
    )
    assert stage_request(asked, {}).precision == precision


def test_recipe__voc07_is_another_name_of_paper() -> None:
    assert load_recipe("voc07") == load_recipe("paper")


def test_propose__dry_run_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_voc(tmp_path / "data", "voc07")
    size = {"image_h": HEIGHT, "image_w": WIDTH}
    rows = {i: ImageRows(prompt_rows((9, 9, 0, 0)), size) for i in ("img_1", "img_2", "img_3")}
    write_table(tmp_path / "prompts.h5", PROMPTS, gather(PROMPTS, rows))
    words = ["propose", "--recipe", "voc07", "--split", "voc07_train", "--dry-run", "--run", str(tmp_path / "run"),
             "--prompts", str(tmp_path / "prompts.h5")]  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        entry_point.main(words)
    assert caught.value.code == 5, "the run would fail: the weights are not there"
    shown = capsys.readouterr()
    assert "  pred_iou_thresh = 0.3" in shown.out, "what it would run with"
    assert "weaksam weights get sam-vit-h" in shown.err
    weights = Path(os.environ["WEAKSAM_CACHE"]) / "weights" / "sam_vit_h_4b8939.pth"
    weights.parent.mkdir(parents=True)
    weights.touch()
    with pytest.raises(SystemExit) as caught:
        entry_point.main(words)
    assert caught.value.code == 0
    assert "  pred_iou_thresh = 0.3" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        entry_point.main([*words, "--json"])
    assert caught.value.code == 0
    found = json.loads(capsys.readouterr().out)["config"]
    agree({k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}, PROPOSAL_TABLE["propose"])
    assert not (tmp_path / "run").exists()


def test_load_recipe__base_is_overridden_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: voc12\nretrain: {epochs: 3}\n")
    (tmp_path / "child.yaml").write_text("base: mine.yaml\npgt: {tau_s: 0.5}\nretrain: {lr: 0.01}\n")
    child, parent = load_recipe(str(tmp_path / "child.yaml")), load_recipe("voc12")
    assert child["retrain"] == parent["retrain"] | {"epochs": "3", "lr": "0.01"}
    assert child["pgt"] == {"mode": "paper", "tau_s": "0.5", "tau_o": "0.85"}
    assert child["wsod"] == parent["wsod"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: voc77", r"no recipe is called 'voc77'(.|\n)*did you mean 'voc07'"),
        ("base: [voc07]", "base must be the name or the path"),
        ("base: ./sub/../mine.yaml", "in a circle"),
        ("base: voc07\nretrian: {}", "unknown section 'retrian'"),
        ("precision: single", r"'single' is not a precision(.|\n)*fp32"),
    ],
)
def test_load_recipe__wrong_base(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_load_config_file__has_no_base(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("base: voc07\n")
    with pytest.raises(ConfigError, match="unknown section 'base'"):
        load_config_file(tmp_path / "settings.yaml")
