"""Training batches: boxes, masks and pixels move together, and depend on (seed, epoch, id) alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.core.datasets.catalog import open_split
from stages.core.datasets.split import WeakSplit
from stages.core.detectors.settings import Augmentation
from stages.core.detectors.training_data import PseudoGroundTruthData
from stages.core.errors import ImageError, SchemaError
from stages.core.spec import FailureLog
from stages.core.structures.detections import Detections
from stages.core.structures.rle import encode_masks
from tests.datasets_builders import HEIGHT, WIDTH, make_voc

BOX = (4, 6, 24, 26)


def split_with_square(tmp_path: Path) -> WeakSplit:
    """Image img_1 is black with a white square at `BOX`."""
    folder = make_voc(tmp_path)
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    Image.fromarray(pixels).save(folder / "JPEGImages" / "img_1.jpg", quality=100)
    return open_split("tiny_train", tmp_path)


def square(with_mask: bool = True) -> Detections:
    mask = np.zeros((1, HEIGHT, WIDTH), np.bool_)
    mask[0, BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    masks = encode_masks(mask) if with_mask else None
    return Detections(np.array([BOX], np.float32), np.array([1]), np.ones(1, np.float32), masks)


def data_of(split: WeakSplit, augmentation: Augmentation, seed: int = 0) -> PseudoGroundTruthData:
    ground_truth = {"img_1": square(), "img_2": Detections.empty()}
    return PseudoGroundTruthData(split, ground_truth, augmentation, seed, True, FailureLog())


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_sample__pixels_boxes_and_masks_move_together(tmp_path: Path, flip: float) -> None:
    data = data_of(split_with_square(tmp_path), Augmentation((2 * HEIGHT,), 1000, flip, color_jitter=0.5))
    assert data.ids == ["img_1"]
    image, target = data.sample("img_1", epoch=0)
    assert image.shape == (3, 2 * HEIGHT, 2 * WIDTH)
    assert image.dtype == torch.float32
    x1, x2 = (BOX[0], BOX[2]) if flip == 0 else (WIDTH - BOX[2], WIDTH - BOX[0])
    assert target["boxes"].tolist() == [[2 * x1, 2 * BOX[1], 2 * x2, 2 * BOX[3]]]
    assert target["labels"].tolist() == [2]  # class index + 1
    rows, columns = torch.where(target["masks"][0] > 0)
    assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == target["boxes"][0].tolist()
    inside = target["masks"][0] > 0
    assert image[:, inside].mean() > image[:, ~inside].mean() + 0.3


def test_sample__depends_on_seed_epoch_and_id_alone(tmp_path: Path) -> None:
    split = split_with_square(tmp_path)
    augmentation = Augmentation((24, 32, 40, 48, 56, 64), 1000, 0.5, 1.0)
    first = data_of(split, augmentation)
    torch.manual_seed(1)
    one = [first.sample("img_1", epoch)[0] for epoch in range(6)]
    torch.manual_seed(2)
    again = data_of(split, augmentation)
    other_order = {epoch: again.sample("img_1", epoch)[0] for epoch in reversed(range(6))}
    assert all(torch.equal(image, other_order[epoch]) for epoch, image in enumerate(one))
    assert len({(tuple(image.shape), float(image.sum())) for image in one}) > 1
    other_seed = [data_of(split, augmentation, seed=1).sample("img_1", epoch)[0] for epoch in range(6)]
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(one, other_seed, strict=True))


def test_sample__does_not_touch_the_global_generator(tmp_path: Path) -> None:
    data = data_of(split_with_square(tmp_path), Augmentation((32, 40), 1000, 0.5, 1.0))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    data.sample("img_1", 0)
    assert torch.equal(torch.rand(3), expected)


def test_pseudo_ground_truth_data__masks_missing_or_of_another_size(tmp_path: Path) -> None:
    split = split_with_square(tmp_path)
    augmentation = Augmentation((32,), 64)
    with pytest.raises(SchemaError, match="no masks"):
        PseudoGroundTruthData(split, {"img_1": square(with_mask=False)}, augmentation, 0, True, FailureLog())
    wrong = square().with_masks(encode_masks(np.ones((1, 5, 5), np.bool_)))
    data = PseudoGroundTruthData(split, {"img_1": wrong}, augmentation, 0, True, FailureLog())
    with pytest.raises(SchemaError, match="img_1"):
        data.sample("img_1", 0)


def test_load__a_thin_image_gives_way_to_the_next_and_the_batch_names_that(tmp_path: Path) -> None:
    split = split_with_square(tmp_path)
    Image.new("RGB", (300, 1)).save(split.image_path("img_2"))
    ground_truth = {"img_1": square(), "img_2": square(), "img_3": square()}
    failures = FailureLog()
    data = PseudoGroundTruthData(split, ground_truth, Augmentation((32,), 128), 0, False, failures)
    batch = data.load(["img_2", "img_1"], epoch=0)
    assert batch.ids == ["img_3", "img_1"]
    assert torch.equal(batch.images[0], data.sample("img_3", 0)[0])
    assert list(failures.entries) == ["img_2"]
    assert "300 x 1 px is too thin" in failures.entries["img_2"]
    assert str(split.image_path("img_2")) in failures.entries["img_2"]


def test_sample__an_image_whose_short_side_keeps_one_pixel_is_used(tmp_path: Path) -> None:
    split = split_with_square(tmp_path)
    for width, usable in ((128, True), (129, False)):
        Image.new("RGB", (width, 1)).save(split.image_path("img_1"))
        data = PseudoGroundTruthData(
            split, {"img_1": square()}, Augmentation((32,), 128), 0, False, FailureLog()
        )
        if usable:
            assert data.sample("img_1", 0)[0].shape == (3, 1, 128)
        else:
            with pytest.raises(ImageError, match="too thin"):
                data.sample("img_1", 0)
