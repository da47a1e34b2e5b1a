"""Photo scenes for sam-nano: which photos are read, what void becomes, and masks that agree with the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sam_nano_training.photos import Photo, compose_scene, cut_out, read_photos, share_void
from sam_nano_training.scenes import Level, draw_scene, enlarge
from sam_nano_training.textures import make_noise_bank
from sam_nano_training.train import SceneSource, TrainingPlan

BANK = make_noise_bank(0, count=2)


def photo(seed: int, height: int = 90, width: int = 120) -> Photo:
    """Noise with two rectangles: one bright and whole, one cropped by two borders of the picture."""
    image = np.random.default_rng(seed).integers(0, 80, (height, width, 3), dtype=np.uint8)
    objects = np.zeros((height, width), dtype=np.uint8)
    objects[20:60, 30:80] = 1
    objects[70:, 100:] = 2
    image[objects == 1] = 230
    return Photo(image, objects, 2)


PHOTOS = [photo(seed) for seed in range(3)]
CUTOUTS = [cutout for one in PHOTOS for cutout in cut_out(one)]


def write_voc(root: Path, ids: dict[str, NDArray[np.uint8]]) -> Path:
    for folder in ("JPEGImages", "SegmentationObject", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
    for image_id, values in ids.items():
        Image.fromarray(np.zeros((*values.shape, 3), np.uint8)).save(root / f"JPEGImages/{image_id}.jpg")
        Image.fromarray(values).save(root / f"SegmentationObject/{image_id}.png")
    return root


def test_read_photos__leaves_out_ids_of_voc_2007(tmp_path: Path) -> None:
    values = np.zeros((30, 40), dtype=np.uint8)
    values[5:20, 5:20] = 1
    values[8:18, 22:34] = 2
    root = write_voc(tmp_path, {"2007_000001": values, "2008_000002": values, "2011_000003": values})
    photos = read_photos(root)
    assert len(photos) == 2
    assert photos[0].count == 2
    np.testing.assert_array_equal(photos[0].objects, values)


def test_share_void__grows_objects_along_their_outline_only() -> None:
    values = np.zeros((40, 40), dtype=np.uint8)
    values[8:22, 8:22] = 255
    values[10:20, 10:20] = 3
    values[30:, 30:] = 255
    objects = share_void(values)
    assert (objects[8:22, 8:22] == 3).all()
    assert objects[:8].sum() == objects[22:].sum() == 0


def test_cut_out__objects_that_are_whole_and_large() -> None:
    cutouts = cut_out(PHOTOS[0])
    assert len(cutouts) == 1
    assert cutouts[0].mask.shape == (40, 50)
    assert (cutouts[0].image == 230).all()


@pytest.mark.parametrize("seed", range(16))
def test_compose_scene__masks_lie_in_the_picture_and_objects_do_not_overlap(seed: int) -> None:
    scene = compose_scene(np.random.default_rng(seed), PHOTOS, CUTOUTS, BANK, 128)
    height, width = scene.valid_hw
    assert scene.image.shape == (128, 128, 3)
    assert len(scene.masks) == len(scene.levels) == len(scene.parents) > 0
    assert not scene.masks[:, height:].any()
    assert not scene.masks[:, :, width:].any()
    assert not scene.image[height:].any()
    covered = (scene.masks[scene.levels == Level.OBJECT] > 127).sum(axis=0)
    assert covered.max() <= 1


def test_compose_scene__is_determined_by_its_seed() -> None:
    first, again = (compose_scene(np.random.default_rng(7), PHOTOS, CUTOUTS, BANK, 128) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.masks, again.masks)


def test_enlarge__keeps_every_mask_where_it_is() -> None:
    scene = draw_scene(np.random.default_rng(3), BANK, 128)
    larger = enlarge(scene, 192)
    assert larger.image.shape == (192, 192, 3)
    assert larger.valid_hw == tuple(round(1.5 * extent) for extent in scene.valid_hw)
    for small, large in zip(scene.masks, larger.masks, strict=True):
        assert (large > 127).sum() == pytest.approx(2.25 * (small > 127).sum(), rel=0.2, abs=40)


def test_scene_source__batches_depend_on_the_step_alone(tmp_path: Path) -> None:
    values = np.zeros((60, 80), dtype=np.uint8)
    values[10:50, 10:60] = 1
    root = write_voc(tmp_path, {f"2008_{i:06}": values for i in range(3)})
    plan = TrainingPlan(minutes=1, images=4, prompts=2, photos=str(root), sizes=(128, 256))
    batches = [SceneSource(plan, 0).batch(step)[0] for step in (0, 1, 2, 3, 0)]
    assert (batches[0] == batches[4]).all()
    assert {batch.shape for batch in batches} == {(4, 3, 128, 128), (1, 3, 256, 256)}, "larger, but fewer"
