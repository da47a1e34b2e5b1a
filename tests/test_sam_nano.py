"""sam-nano: geometry, frozen statistics, and the weights that are shipped."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from segment_anything.modeling import Sam

from stages.core.segmenters.sam_checkpoints import load_sam
from stages.core.segmenters.sam_nano import (
    NanoImageEncoder,
    architecture,
    build_sam_nano,
    load_imagenet_trunk,
)
from stages.core.weights.cache import cached_weights


def test_build_sam_nano__embeds_at_stride_8() -> None:
    sam = build_sam_nano()
    assert isinstance(sam, Sam)
    assert sam.image_encoder(torch.zeros(1, 3, 256, 256)).shape == (1, 128, 32, 32)
    assert sam.prompt_encoder.image_embedding_size == (32, 32)


def test_encoder__sees_every_pixel_of_a_cell() -> None:
    encoder = build_sam_nano(32, 64).image_encoder
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 64, 64, generator=generator, requires_grad=True)
    mixed = encoder(image)[0, :, 4, 4] @ torch.randn(32, generator=generator)
    mixed.backward()
    assert image.grad is not None
    assert (image.grad[0, :, 32:40, 32:40].abs().sum(dim=0) > 0).all()


def test_encoder__training_leaves_batch_statistics_alone() -> None:
    encoder = build_sam_nano(32, 64).image_encoder
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.train()
    encoder(torch.rand(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_load_imagenet_trunk__matches_by_order() -> None:
    source, target = NanoImageEncoder(32, 64), NanoImageEncoder(32, 64)
    state = {f"renamed.{i}": value for i, (name, value) in enumerate(source.trunk.state_dict().items())
             if not name.endswith("num_batches_tracked")}  # fmt: skip
    assert load_imagenet_trunk(target, state | {"classifier": torch.zeros(3)}) == len(state)
    for name, value in source.trunk.state_dict().items():
        assert torch.equal(target.trunk.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("state", "message"),
    [({"a": torch.zeros(2)}, "does not fit"), ({}, "0 tensors given")],
    ids=["shape", "too few"],
)
def test_load_imagenet_trunk__refuses(state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_imagenet_trunk(NanoImageEncoder(32, 64), state)


@pytest.mark.parametrize(("name", "image_size"), [("sam-nano", 256), ("sam-nano-photo", 384)])
def test_shipped_weights__are_small_and_of_this_architecture(name: str, image_size: int) -> None:
    path = cached_weights(name)
    assert path.stat().st_size <= 12 * 2**20
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    assert facts["architecture"] == architecture(image_size)
    assert load_sam("sam-nano", path).image_encoder.img_size == image_size
    assert "Apache-2.0" in facts["licence"]
    assert "sam_nano_training.train" in facts["command"]
