"""The classifier's training crops: what RandAugment and erasing change, and that chance comes from one place."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.cam.augmentation import CropAugmentation, _image_part, _square_part, random_crop
from stages.cam.config import CamConfig
from stages.core.config import load_recipe
from stages.core.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(60, 180, (40, 50, 3), np.uint8)


def crop(seed: int = 1, **changes: object) -> Tensor:
    config = CamConfig.model_validate({"train_crop_size": 32, **changes})
    return CropAugmentation(config)(PIXELS, np.random.default_rng(seed))


def test_augmentation__nothing_by_default() -> None:
    plain = random_crop(PIXELS, CamConfig(train_crop_size=32), np.random.default_rng(1))
    assert torch.equal(crop(), plain)


@pytest.mark.parametrize(
    ("aspect", "quantiles"), [("image", [1.16, 1.50, 1.95]), ("square", [0.78, 1.04, 1.30])]
)
def test_random_part__aspect_ratios_of_a_wide_image(aspect: str, quantiles: list[float]) -> None:
    draw, rng = {"image": _image_part, "square": _square_part}[aspect], np.random.default_rng(0)
    parts = [draw(333, 500, 0.08, rng) for _ in range(4000)]
    ratios = [(c.stop - c.start) / (r.stop - r.start) for r, c in parts]
    assert np.quantile(ratios, [0.05, 0.5, 0.95]) == pytest.approx(quantiles, abs=0.03)
    assert all(r.stop <= 333 and c.stop <= 500 for r, c in parts)
    areas = [(c.stop - c.start) * (r.stop - r.start) / (333 * 500) for r, c in parts]
    assert 0.07 < min(areas) < 0.1


def test_square_part__a_thin_image_gives_its_centre() -> None:
    rows, columns = _square_part(10, 1000, 0.5, np.random.default_rng(0))
    assert (rows, columns) == (slice(0, 10), slice(493, 506))


def test_augmentation__depends_on_its_generator_alone() -> None:
    published = {
        name: load_recipe("paper")["cam"][name]
        for name in ("randaugment", "random_erase_prob", "min_crop_area_fraction")
    }
    random.seed(1)
    torch.manual_seed(1)
    first = crop(**published)
    expected = random.random(), float(np.random.rand()), float(torch.rand(()))
    state = np.random.get_state()
    random.seed(1)
    torch.manual_seed(1)
    np.random.set_state(state)
    again = crop(**published)
    assert torch.equal(first, again)
    assert (random.random(), float(torch.rand(()))) == (expected[0], expected[2])  # the rest does not notice
    others = [crop(seed, **published) for seed in range(2, 8)]
    assert all(not torch.equal(first, other) for other in others)
    assert first.shape == (1, 3, 32, 32)


def test_augmentation__randaugment_stays_an_image() -> None:
    changed = [crop(seed, randaugment="rand-m9-mstd0.5-inc1") for seed in range(20)]
    assert any(not torch.equal(one, crop(seed)) for seed, one in enumerate(changed))
    assert all(float(one.min()) >= 0 and float(one.max()) <= 1 for one in changed)


def test_augmentation__erasing_puts_noise_into_a_rectangle() -> None:
    plain, erased = crop(), crop(random_erase_prob=1.0)
    changed_HW = (plain != erased).any(dim=1)[0]
    rows, columns = torch.where(changed_HW)
    area = int(changed_HW.sum())
    assert 0.02 * 32**2 * 0.8 <= area <= 32**2 / 3 * 1.2
    assert area >= 0.99 * (int(rows.max() - rows.min()) + 1) * (int(columns.max() - columns.min()) + 1)
    noise = erased[0][:, changed_HW]
    assert abs(float(noise.mean()) - 0.449) < 0.05  # ImageNet's mean over channels
    assert abs(float(noise.std()) - 0.226) < 0.05
    untouched = sum(torch.equal(crop(seed), crop(seed, random_erase_prob=0.25)) for seed in range(100))
    assert 60 <= untouched <= 88


def test_augmentation__unknown_policies_are_refused() -> None:
    with pytest.raises(ValidationError, match="policy of timm"):
        CamConfig(randaugment="augmix")
    with pytest.raises(ConfigError, match="is no policy"):
        CropAugmentation(CamConfig(randaugment="rand-q9"))
