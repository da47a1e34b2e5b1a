"""Attention, classifier and maps: the invariants of the method."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.cam.attention import (
    RecordedBlocks,
    class_to_patch,
    locality_bias,
    patch_to_patch,
)
from stages.cam.building import build_classifier, load_classifier, map_rule, save_classifier
from stages.cam.classifier import MultiClassTokenClassifier
from stages.cam.config import CamConfig, HybridSettings
from stages.cam.conv_classifier import gives_feature_maps
from stages.cam.fusion import AttentionFusion
from stages.cam.losses import tag_losses
from stages.cam.maps import (
    Affinity,
    ImageMaps,
    image_maps,
    normalise,
    patch_affinity,
    predicted_classes,
    view_sizes,
)
from stages.cam.stage import map_rows
from stages.core.errors import ConfigError, SchemaError

SMALL = CamConfig(
    hybrid=HybridSettings(embed_dim=32, num_heads=4, depth=2), pretrained=False, tta_scales=(1.0, 0.8)
)
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model() -> MultiClassTokenClassifier:
    torch.manual_seed(0)
    built = build_classifier(SMALL, len(CLASSES), pretrained=False).eval()
    assert isinstance(built, MultiClassTokenClassifier)
    return built


def picture(height: int = 64, width: int = 96) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def maps_of(model: MultiClassTokenClassifier, **changes: object) -> ImageMaps:
    config = SMALL.model_copy(update=changes)
    return image_maps(model, picture(), (0, 2), map_rule(config))


def test_forward__shapes_and_attention_rows_sum_to_one(model: MultiClassTokenClassifier) -> None:
    output = model(torch.rand(2, 3, 64, 96), record=True)
    assert output.attention_BLHNN is not None
    assert output.fused_BNN is not None
    n = 3 + 4 * 6
    assert output.attention_BLHNN.shape == (2, 2, 4, n, n)
    assert output.coarse_BCHW.shape == (2, 3, 4, 6)
    torch.testing.assert_close(output.fused_BNN.sum(-1), torch.ones(2, n))


def test_forward__recording_changes_nothing(model: MultiClassTokenClassifier) -> None:
    images = torch.rand(1, 3, 64, 64)
    fast, slow = model(images), model(images, record=True)
    assert fast.attention_BLHNN is None
    torch.testing.assert_close(fast.class_logits_BC, slow.class_logits_BC, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fast.coarse_BCHW, slow.coarse_BCHW, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 160)])
def test_adaptive_fusion__its_input_is_one_over_n_whatever_the_image(
    model: MultiClassTokenClassifier, size: tuple[int, int]
) -> None:
    # The proof that gates computed from the mean of each attention matrix are constants.
    attention = model(torch.rand(2, 3, *size), record=True).attention_BLHNN
    assert attention is not None
    n = 3 + size[0] * size[1] // 256
    torch.testing.assert_close(attention.mean(dim=(-2, -1)), torch.full((2, 2, 4), 1 / n))


def test_attention_fusion__learned_starts_as_the_mean_and_keeps_rows_normalised() -> None:
    attention = torch.rand(1, 2, 3, 5, 5).softmax(-1)
    outputs = torch.rand(1, 2, 5, 12)
    learned = AttentionFusion(2, 3, "learned")
    torch.testing.assert_close(learned(attention, outputs), AttentionFusion(2, 3, "mean")(attention, outputs))
    assert learned.logits_LH is not None
    learned.logits_LH.data = torch.randn(2, 3)
    torch.testing.assert_close(learned(attention, outputs).sum(-1), torch.ones(1, 5))


def test_attention_fusion__feature_gates_differ_between_images() -> None:
    torch.manual_seed(0)
    attention = torch.rand(1, 2, 4, 5, 5).softmax(-1).expand(3, -1, -1, -1, -1)
    fusion = AttentionFusion(2, 4, "features", dim=16)
    outputs = 5 * torch.randn(3, 2, 5, 16)
    weights = fusion.weights(outputs)
    torch.testing.assert_close(weights.sum(dim=(1, 2)), torch.ones(3))
    assert (weights[0] - weights[1]).abs().max() > 1e-3, "what the published gates cannot do"
    torch.testing.assert_close(fusion(attention, outputs).sum(-1), torch.ones(3, 5))


@pytest.mark.parametrize("fusion", ["mean", "learned", "features"])
def test_tag_losses__fine_term_teaches_the_fusion_and_nothing_else(fusion: str) -> None:
    torch.manual_seed(0)
    model = build_classifier(
        SMALL.model_copy(update={"attention_fusion": fusion}), 3, pretrained=False
    ).train()
    losses = tag_losses(model(torch.rand(2, 3, 64, 64)), torch.eye(3)[:2])
    if fusion == "mean":
        assert "loss_fine" not in losses
        return
    torch.autograd.backward(losses["loss_fine"])
    taught = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert taught
    assert all(name.startswith(("fusion.", "fine.")) for name in taught)
    assert any(name.startswith("fusion.") for name in taught)


def test_class_and_patch_parts__of_a_hand_made_matrix() -> None:
    attention = torch.arange(36.0).view(6, 6)  # 2 classes, a 2 x 2 grid
    assert class_to_patch(attention, 2, (2, 2)).tolist() == [[[2, 3], [4, 5]], [[8, 9], [10, 11]]]
    assert patch_to_patch(attention, 2)[0].tolist() == [14, 15, 16, 17]


def test_locality_bias__only_between_patches_and_halved_per_head() -> None:
    bias = locality_bias((1, 3), 2, 2, 1.0, patches_attend_classes=True)
    assert bias[0, 2:, 2:].tolist() == [[0, -1, -2], [-1, 0, -1], [-2, -1, 0]]
    torch.testing.assert_close(bias[1], bias[0] / 2)
    assert not bias[:, :2].any()
    hidden = locality_bias((1, 3), 2, 2, 1.0, patches_attend_classes=False)
    assert torch.isinf(hidden[:, 2:, :2]).all()
    assert torch.isfinite(hidden[:, :2]).all()


def test_patches_see_classes__off_means_patches_ignore_class_tokens(model: MultiClassTokenClassifier) -> None:
    images = torch.rand(1, 3, 64, 64)
    before = model(images).coarse_BCHW
    saved = model.class_tokens.data.clone()
    model.class_tokens.data += 1.0
    after = model(images).coarse_BCHW
    model.class_tokens.data = saved
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize("affinity", ["attention", "transposed", "symmetric", "feature"])
def test_image_maps__mirrored_image_gives_mirrored_maps(
    model: MultiClassTokenClassifier, affinity: Affinity
) -> None:
    rule = map_rule(SMALL.model_copy(update={"affinity": affinity}))
    pixels = picture()
    upright = image_maps(model, pixels, (0, 2), rule)
    mirrored = image_maps(model, np.ascontiguousarray(pixels[:, ::-1]), (0, 2), rule)
    for kind in ("coarse", "fine", "cross"):
        np.testing.assert_allclose(getattr(mirrored, kind)[..., ::-1], getattr(upright, kind), atol=2e-3)


def test_image_maps__only_the_given_classes_each_in_zero_one(model: MultiClassTokenClassifier) -> None:
    maps = maps_of(model, cross_layers=())
    assert maps.classes == (0, 2)
    assert maps.fine is not None
    assert maps.cross is not None
    assert maps.coarse.shape == maps.fine.shape == (2, 8, 12)
    assert maps.cross.shape == (2, 2, 4, 8, 12)
    for values in (maps.coarse, maps.fine, maps.cross):
        assert values.dtype == np.float32
        assert values.min() >= 0
        assert values.max() <= 1


def test_image_maps__absent_classes_do_not_change_the_others(model: MultiClassTokenClassifier) -> None:
    rule = map_rule(SMALL)
    both, one = image_maps(model, picture(), (0, 2), rule), image_maps(model, picture(), (2,), rule)
    assert both.fine is not None
    assert one.fine is not None
    np.testing.assert_allclose(both.fine[1], one.fine[0], atol=1e-5)


def test_image_maps__without_tags_takes_the_predicted_classes(model: MultiClassTokenClassifier) -> None:
    maps = image_maps(
        model, picture(), None, map_rule(SMALL.model_copy(update={"test_logit_thresh": -100.0}))
    )
    assert maps.classes == (0, 1, 2)
    best = image_maps(model, picture(), None, map_rule(SMALL.model_copy(update={"test_logit_thresh": 100.0})))
    assert best.classes == (int(best.logits.argmax()),)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([-0.6, 0.2, -0.4], (1, 2)), ([-0.6, -0.5, -0.7], (1,)), ([-3.0, -2.0, -9.0], (1,))],
)
def test_predicted_classes__above_threshold_or_the_best(
    logits: list[float], expected: tuple[int, ...]
) -> None:
    assert predicted_classes(torch.tensor(logits), -0.5) == expected


@pytest.mark.parametrize(
    ("height", "width", "max_side", "expected"),
    [
        (64, 96, 640, [(64, 96), (48, 80)]),
        (231, 213, 640, [(224, 208), (192, 176)]),
        (5, 5, 640, [(16, 16), (16, 16)]),
        (1000, 500, 200, [(192, 96), (160, 80)]),
    ],
)
def test_view_sizes__multiples_of_the_patch(
    height: int, width: int, max_side: int, expected: list[tuple[int, int]]
) -> None:
    assert view_sizes(height, width, (1.0, 0.8), max_side, 16) == expected


def test_normalise__flat_maps_are_zero_and_half_precision_does_not_underflow() -> None:
    maps = torch.stack([torch.full((2, 2), 3.0), torch.tensor([[0.0, 1e-6], [2e-6, 4e-6]])]).half()
    out = normalise(maps)
    assert out.dtype == torch.float32
    assert not out[0].any()
    assert out[1].max() == 1.0
    assert torch.isfinite(out).all()


def test_patch_affinity__feature_rows_are_distributions_with_self_on_top(
    model: MultiClassTokenClassifier,
) -> None:
    output = model(torch.rand(1, 3, 64, 64), record=True)
    affinity = patch_affinity(output, "feature", 0.3)[0]
    torch.testing.assert_close(affinity.sum(-1), torch.ones(16))
    assert (affinity.argmax(-1) == torch.arange(16)).all()
    symmetric = patch_affinity(output, "symmetric", 0.3)[0]
    torch.testing.assert_close(symmetric, symmetric.T)


def test_tag_losses__equal_soft_margin_by_hand(model: MultiClassTokenClassifier) -> None:
    output = model(torch.rand(2, 3, 64, 64))
    tags = torch.tensor([[1.0, 0, 0], [0, 1, 1]])
    losses = tag_losses(output, tags)

    def by_hand(logits: Tensor) -> Tensor:
        p = logits.sigmoid()
        return -(tags * p.log() + (1 - tags) * (1 - p).log()).mean()

    torch.testing.assert_close(losses["loss_class"], by_hand(output.class_logits_BC))
    torch.testing.assert_close(losses["loss_patch"], by_hand(output.patch_logits_BC))


def test_build_vit__any_grid_size_and_replicated_class_token() -> None:
    config = CamConfig(
        architecture="vit", backbone="vit_tiny_patch16_224", pretrained=False, cross_layers=(4, 11)
    )
    vit = build_classifier(config, 3, pretrained=False).eval()
    output = vit(torch.rand(1, 3, 64, 96), record=True)
    assert output.attention_BLHNN is not None
    assert output.attention_BLHNN.shape == (1, 12, 3, 27, 27)
    assert output.coarse_BCHW.shape == (1, 3, 4, 6)
    assert isinstance(vit, MultiClassTokenClassifier)
    torch.testing.assert_close(vit.class_tokens[0], vit.class_tokens[2])
    assert isinstance(vit.encoder, RecordedBlocks)


@pytest.mark.parametrize(
    ("name", "side", "heads", "patch"),
    [
        ("vit_tiny_patch16_224", 64, 3, 16),
        ("vit_small_patch14_dinov2", 56, 6, 14),
        ("vit_small_patch14_reg4_dinov2", 56, 6, 14),
        ("eva02_tiny_patch14_224", 56, 3, 14),
    ],
)
def test_build_vit__families_of_transformers(name: str, side: int, heads: int, patch: int) -> None:
    config = CamConfig(
        architecture="vit", backbone=name, pretrained=False, cross_layers=(10,), tta_scales=(1.0,)
    )
    vit = build_classifier(config, 2, pretrained=False).eval()
    output = vit(torch.rand(1, 3, side, side + 2 * patch), record=True)
    assert vit.patch == patch
    assert output.attention_BLHNN is not None
    n = 2 + 4 * 6  # class tokens and patches; registers are left out
    assert output.attention_BLHNN.shape == (1, 12, heads, n, n)
    torch.autograd.backward(output.class_logits_BC.sum())
    maps = image_maps(vit, picture(56, 70), (1,), map_rule(config))
    assert maps.cross is not None
    assert maps.cross.shape[:3] == (1, 1, heads)


@pytest.mark.parametrize("interpolation", ["antialias", "offset"])
def test_vit_body__positions_at_another_grid(interpolation: str) -> None:
    config = CamConfig.model_validate(
        {
            "architecture": "vit",
            "backbone": "deit_tiny_patch16_224",
            "pretrained": False,
            "pos_embed_interpolation": interpolation,
        }
    )
    body: Any = build_classifier(config, 2, pretrained=False).body
    positions = torch.randn(1, 196, body.dim)
    found = body._resampled(positions, (20, 31))
    grid = positions.transpose(1, 2).reshape(1, body.dim, 14, 14)
    published = torch.nn.functional.interpolate(grid, scale_factor=(20.1 / 14, 31.1 / 14), mode="bicubic")
    equal = torch.allclose(found, published.flatten(2).transpose(1, 2), atol=1e-5)
    assert found.shape == (1, 620, body.dim)
    assert equal == (interpolation == "offset")


def test_build_vit__rotary_positions_belong_to_patches() -> None:
    """A picture's two halves exchanged give other tokens; class tokens are passed over by the rotation."""
    config = CamConfig(
        architecture="vit", backbone="eva02_tiny_patch14_224", pretrained=False, cross_layers=(0,)
    )
    vit = build_classifier(config, 2, pretrained=False).eval()
    assert isinstance(vit, MultiClassTokenClassifier)
    with torch.no_grad():
        body: Any = vit.body
        body.pos_embed.zero_()
        for block in vit.encoder.blocks:
            attention: Any = block.attn
            assert attention.num_prefix_tokens == 2
        image = torch.rand(1, 3, 28, 56)
        mixed = torch.cat([image[..., 28:], image[..., :28]], dim=-1)
        assert not torch.allclose(vit(image).class_logits_BC, vit(mixed).class_logits_BC, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("resnet10t", True), ("convnext_atto", True), ("pvt_v2_b0", True), ("maxvit_tiny_rw_224", True),
        ("vit_tiny_patch16_224", False), ("mixer_s16_224", False), ("eva02_tiny_patch14_224", False),
        ("swin_tiny_patch4_window7_224", False), ("hybrid", False),
    ],
)  # fmt: skip
def test_gives_feature_maps__asks_the_model_not_its_name(name: str, maps: bool) -> None:
    assert gives_feature_maps(name) is maps


def test_build_conv__coarse_maps_alone() -> None:
    config = CamConfig(architecture="cnn", backbone="resnet10t", pretrained=False, tta_scales=(1.0,))
    model = build_classifier(config, 3, pretrained=False).eval()
    maps = image_maps(model, picture(), (0, 2), map_rule(config))
    assert maps.coarse.shape == (2, 8, 12)
    assert maps.fine is None
    assert maps.cross is None
    rows = map_rows(maps, (), 64, 96)
    assert rows.columns["kind"].tolist() == [0, 0]
    losses = tag_losses(model(torch.rand(1, 3, 64, 64)), torch.ones(1, 3))
    assert list(losses) == ["loss_patch"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "vit", "backbone": "deit_smal_patch16_224"},
            "did you mean 'deit_small_patch16_224'",
        ),
        (
            {"architecture": "vit", "backbone": "swin_tiny_patch4_window7_224"},
            "not a plain vision transformer",
        ),
        ({"architecture": "cnn", "backbone": "vit_tiny_patch16_224"}, "no convolutional network"),
        ({"cross_layers": (0, 5)}, "counted from 0"),
        ({"backbone": "nope"}, "unknown backbone"),
    ],
)
def test_build_classifier__bad_settings_name_the_hint(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_classifier(SMALL.model_copy(update=changes), 3, pretrained=False)


def test_checkpoint__round_trip_follows_the_file_not_the_settings(
    model: MultiClassTokenClassifier, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("w") / "classifier.safetensors"
    save_classifier(path, model, SMALL, CLASSES)
    loaded = load_classifier(path, CamConfig(), CLASSES)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(images).class_logits_BC, model(images).class_logits_BC)
    for other in (("a", "b", "d"), ("a", "b"), ("a", "b", "c", "d")):
        with pytest.raises(SchemaError, match="made for classes"):
            load_classifier(path, CamConfig(), other)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (40, 10_000)])
def test_image_maps__smaller_than_a_patch_and_very_wide(
    model: MultiClassTokenClassifier, height: int, width: int
) -> None:
    maps = image_maps(model, picture(height, width), (1,), map_rule(SMALL))
    assert maps.coarse.shape[1] >= 2
    assert maps.coarse.shape[2] <= 2 * 640 // 16
    assert maps.fine is not None
    for values in (maps.coarse, maps.fine):
        assert np.isfinite(values).all()
