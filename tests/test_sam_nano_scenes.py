"""Drawn scenes and prompts for sam-nano: hierarchy, visibility, determinism, and clicks that mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sam_nano_training.outlines import OUTLINES, fill, place, random_outline
from sam_nano_training.prompts import outline_band, sample_click, sample_prompts
from sam_nano_training.scenes import MIN_VISIBLE_AREA, Level, Scene, draw_scene
from sam_nano_training.textures import make_noise_bank

BANK = make_noise_bank(0, count=2)
SCENES = [draw_scene(np.random.default_rng(seed), BANK) for seed in range(12)]


@pytest.mark.parametrize("kind", range(len(OUTLINES)), ids=[drawer.__name__ for drawer, _, _ in OUTLINES])
def test_outlines__are_drawn_within_their_radius(kind: int) -> None:
    drawer, _, united = OUTLINES[kind]
    for seed in range(20):
        contours = place(drawer(np.random.default_rng(seed)), np.array([64.0, 64.0]), 30.0, 1.0, 0.3)
        cover = fill(contours, 128, united)
        rows, columns = np.nonzero(cover > 127)
        assert len(rows) > 20
        assert np.hypot(rows - 63.5, columns - 63.5).max() < 30 * 1.9


def test_fill__covers_the_outline_to_within_a_pixel() -> None:
    square = np.array([[10.0, 20.0], [14.0, 20.0], [14.0, 26.0], [10.0, 26.0]])
    cover = fill([square], 40, False).astype(float)
    assert (cover[20:26, 10:14] == 255).all()
    # OpenCV lets the antialiased rim spill over by up to two pixels.
    assert cover[:18].sum() == cover[28:].sum() == cover[:, :8].sum() == cover[:, 16:].sum() == 0
    rows, columns = np.mgrid[:40, :40] + 0.5
    assert (rows * cover).sum() / cover.sum() == pytest.approx(23, abs=0.6)
    assert (columns * cover).sum() / cover.sum() == pytest.approx(12, abs=0.6)


def test_fill__cuts_holes_unless_united() -> None:
    outer = np.array([[5.0, 5.0], [35.0, 5.0], [35.0, 35.0], [5.0, 35.0]])
    inner = np.array([[15.0, 15.0], [25.0, 15.0], [25.0, 25.0], [15.0, 25.0]])
    assert fill([outer, inner], 40, False)[20, 20] == 0
    assert fill([outer, inner], 40, True)[20, 20] == 255


def test_random_outline__uses_every_kind() -> None:
    rng = np.random.default_rng(0)
    united = {random_outline(rng)[1] for _ in range(200)}
    assert united == {True, False}


@pytest.mark.parametrize("scene", SCENES)
def test_draw_scene__masks_are_visible_and_inside_the_picture(scene: Scene) -> None:
    height, width = scene.valid_hw
    assert scene.image.shape == (256, 256, 3)
    assert scene.image.dtype == scene.masks.dtype == np.uint8
    assert not scene.image[height:].any()
    assert not scene.image[:, width:].any()
    assert not scene.masks[:, height:].any()
    assert not scene.masks[:, :, width:].any()
    assert ((scene.masks > 127).sum(axis=(1, 2)) >= MIN_VISIBLE_AREA).all()


@pytest.mark.parametrize("scene", SCENES)
def test_draw_scene__parts_lie_in_objects_and_objects_do_not_overlap(scene: Scene) -> None:
    for mask, level, parent in zip(scene.masks, scene.levels, scene.parents, strict=True):
        if level == Level.PART and parent >= 0:
            assert scene.levels[parent] == Level.OBJECT
            # Both are antialiased, so they may differ by a rounding step.
            assert (mask.astype(int) <= scene.masks[parent].astype(int) + 8).all()
        if level == Level.OBJECT and parent >= 0:
            assert scene.levels[parent] == Level.GROUP
    objects = scene.masks[scene.levels == Level.OBJECT] > 127
    assert objects.sum(axis=0).max(initial=0) <= 1


def test_draw_scene__covers_all_levels_and_sizes() -> None:
    levels = np.concatenate([scene.levels for scene in SCENES])
    assert set(levels.tolist()) == {Level.GROUP, Level.OBJECT, Level.PART}
    sides = np.concatenate([np.sqrt((scene.masks > 127).sum(axis=(1, 2))) for scene in SCENES])
    assert sides.min() < 15
    assert sides.max() > 100


def test_draw_scene__same_seed_same_picture() -> None:
    first, again, other = (draw_scene(np.random.default_rng(seed), BANK) for seed in (5, 5, 6))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.image, other.image)


def test_make_noise_bank__is_normalised_and_gets_smoother() -> None:
    bank = make_noise_bank(3, count=3)
    for field in bank:
        assert abs(float(field.mean())) < 1e-3
        assert float(field.std()) == pytest.approx(1, abs=1e-3)
    rough = [float(np.abs(np.diff(field, axis=1)).mean()) for field in bank]
    assert rough == sorted(rough, reverse=True)


def test_sample_click__lies_inside_even_a_thin_mask() -> None:
    mask = np.zeros((256, 256), dtype=np.uint8)
    mask[40:42, 10:200] = 255
    for seed in range(30):
        x, y = sample_click(np.random.default_rng(seed), mask)
        assert mask[int(y), int(x)] == 255


def test_outline_band__surrounds_the_outline_only() -> None:
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:48, 16:48] = 255
    band = outline_band(mask)
    assert band[16, 16] == band[14, 30] == band[17, 30] == 1
    assert band[32, 32] == band[5, 5] == 0


@pytest.mark.parametrize("box_share", [0.0, 1.0])
def test_sample_prompts__targets_answer_the_prompt(box_share: float) -> None:
    several = 0
    for seed, scene in enumerate(SCENES):
        batch = sample_prompts(np.random.default_rng(seed), scene, 6, box_share)
        assert batch.targets_PTHW.shape == (6, 3, 128, 128)
        assert batch.valid_PT[:, 0].all()
        assert (batch.targets_PTHW[~batch.valid_PT] == 0).all()
        several += int(batch.valid_PT[:, 1:].sum())
        if batch.boxes_P4 is not None:
            assert batch.single_P.all()
            assert (batch.boxes_P4[:, 2:] >= batch.boxes_P4[:, :2]).all()
            continue
        assert batch.points_PK2 is not None
        assert batch.labels_PK is not None
        for row in range(6):
            for point, label in zip(batch.points_PK2[row], batch.labels_PK[row].tolist(), strict=True):
                x, y = (int(v) // 2 for v in point.tolist())
                covered = batch.targets_PTHW[row, batch.valid_PT[row], y, x]
                assert label == -1 or bool((covered > 0).all() if label == 1 else covered[0] < 0.5)
    assert (several > 0) == (box_share == 0.0)


def test_sample_prompts__ambiguous_only_for_one_click() -> None:
    for seed, scene in enumerate(SCENES):
        batch = sample_prompts(np.random.default_rng(seed), scene, 6, 0.0)
        assert batch.labels_PK is not None
        clicks = (batch.labels_PK >= 0).sum(dim=1)
        assert torch.equal(batch.single_P, clicks > 1)
