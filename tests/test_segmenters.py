"""Segmenters: the library's own answers through our interface, and every way a weights file can be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import segment_anything
import torch
from safetensors.torch import save_file
from segment_anything import SamPredictor
from torch import Tensor

from stages.core.errors import ConfigError, EnvironmentFault, ImageError, SchemaError, WeakSamError
from stages.core.segmenters.sam_checkpoints import load_nano, load_sam, read_published
from stages.core.segmenters.sam_nano import ARCHITECTURE, build_sam_nano
from stages.core.segmenters.sam_segmenter import SamSegmenter
from tests.segmenter_builders import PROMPTS, check_decode_above, picture, shaken, tiny_vit_sam


def builders() -> list[Any]:
    return [pytest.param(tiny_vit_sam, id="vit"), pytest.param(lambda: build_sam_nano(32, 64), id="nano")]


def as_tensor(values: Any) -> Tensor | None:
    return None if values is None else torch.tensor(values)


@pytest.mark.parametrize("build", builders())
@pytest.mark.parametrize("size_hw", [(30, 45), (64, 64), (130, 50)])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(("points", "labels", "boxes"), PROMPTS)
def test_decode__equals_the_library_predictor(
    build: Any, size_hw: tuple[int, int], multimask: bool, points: Any, labels: Any, boxes: Any
) -> None:
    sam = shaken(build())
    image = picture(*size_hw)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    coords, corners = as_tensor(points), as_tensor(boxes)
    full, iou, low = predictor.predict_torch(
        None if coords is None else predictor.transform.apply_coords_torch(coords, size_hw),
        as_tensor(labels),
        None if corners is None else predictor.transform.apply_boxes_torch(corners, size_hw),
        multimask_output=multimask,
        return_logits=True,
    )
    segmenter = SamSegmenter("under test", sam)
    encoded = segmenter.encode(image)
    decoded = segmenter.decode(encoded, coords, as_tensor(labels), corners, multimask=multimask)
    assert decoded.low_res_logits.shape == low.shape
    torch.testing.assert_close(decoded.low_res_logits, low, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(decoded.predicted_iou, iou, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(segmenter.upscale(decoded.low_res_logits, encoded), full, rtol=1e-3, atol=1e-4)


def test_decode_above__draws_what_decode_draws_and_nothing_below_the_floor() -> None:
    check_decode_above(SamSegmenter("nano", shaken(build_sam_nano(32, 64))), points_per_prompt=1)


def test_encode__calls_the_encoder_once_and_decode_never() -> None:
    sam = build_sam_nano(32, 64)
    calls: list[torch.Size] = []
    sam.image_encoder.register_forward_hook(lambda module, inputs, output: calls.append(output.shape))
    segmenter = SamSegmenter("nano", sam)
    encoded = segmenter.encode(picture(40, 60))
    for _ in range(3):
        segmenter.decode(encoded, None, None, torch.tensor([[1.0, 2.0, 30.0, 20.0]]), multimask=False)
    assert calls == [torch.Size([1, 32, 8, 8])]


def test_encode__images_do_not_mix() -> None:
    segmenter = SamSegmenter("nano", shaken(build_sam_nano(32, 64)))
    first = segmenter.encode(picture(40, 60))
    segmenter.encode(picture(64, 64, seed=1))
    box = torch.tensor([[1.0, 2.0, 30.0, 20.0]])
    again = segmenter.decode(segmenter.encode(picture(40, 60)), None, None, box, multimask=True)
    kept = segmenter.decode(first, None, None, box, multimask=True)
    assert torch.equal(kept.low_res_logits, again.low_res_logits)


@pytest.mark.parametrize(
    ("height", "width", "extent"), [(64, 128, (16.0, 32.0)), (128, 64, (32.0, 16.0)), (50, 50, (32.0, 32.0))]
)
def test_logit_extent__is_the_image_without_padding(
    height: int, width: int, extent: tuple[float, float]
) -> None:
    encoded = SamSegmenter("nano", build_sam_nano(32, 64)).encode(picture(height, width))
    assert encoded.logit_extent(torch.zeros(2, 3, 32, 32)) == extent


def test_upscale__of_nothing_has_the_image_size() -> None:
    segmenter = SamSegmenter("nano", build_sam_nano(32, 64))
    encoded = segmenter.encode(picture(40, 60))
    assert segmenter.upscale(torch.zeros(0, 32, 32), encoded).shape == (0, 40, 60)


def test_encode__refuses_an_image_that_would_vanish() -> None:
    with pytest.raises(ImageError, match="4000 x 2 px is too thin"):
        SamSegmenter("nano", build_sam_nano(32, 64)).encode(picture(2, 4000))


def write_nano(path: Path, changes: dict[str, Tensor | None], architecture: str = ARCHITECTURE) -> Path:
    state: dict[str, Tensor | None] = {
        name: value.half() if value.is_floating_point() else value
        for name, value in build_sam_nano().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state |= changes
    tensors = {name: value.clone() for name, value in state.items() if value is not None}
    save_file(tensors, path, {"architecture": architecture})
    return path


def test_load_nano__restores_the_written_weights(tmp_path: Path) -> None:
    token = torch.full((1, 128), 0.5)
    sam: Any = load_nano(
        write_nano(tmp_path / "nano.safetensors", {"mask_decoder.iou_token.weight": token.half()})
    )
    assert torch.equal(sam.mask_decoder.iou_token.weight, token)
    assert not sam.training
    assert sam.mask_decoder.iou_token.weight.dtype == torch.float32


BROKEN_NANO: list[Any] = [
    pytest.param(
        {"mask_decoder.iou_token.weight": torch.zeros(1, 64)},
        ARCHITECTURE,
        "iou_token.weight is \\(1, 64\\)",
        id="shape",
    ),
    pytest.param({"mask_decoder.iou_token.weight": None}, ARCHITECTURE, "lacks .*iou_token", id="missing"),
    pytest.param({"extra": torch.zeros(1)}, ARCHITECTURE, "unknown .*extra", id="unknown"),
    pytest.param({}, "sam-nano-0", "weights of 'sam-nano-0'", id="version"),
]


@pytest.mark.parametrize(("changes", "architecture", "message"), BROKEN_NANO)
def test_load_nano__names_what_does_not_fit(
    tmp_path: Path, changes: dict[str, Tensor | None], architecture: str, message: str
) -> None:
    path = write_nano(tmp_path / "nano.safetensors", changes, architecture)
    with pytest.raises(SchemaError, match=message):
        load_nano(path)


def test_load_nano__truncated_file(tmp_path: Path) -> None:
    path = write_nano(tmp_path / "nano.safetensors", {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SchemaError, match="damaged"):
        load_nano(path)


BAD_REQUESTS: list[Any] = [
    pytest.param("sam-nona", None, ConfigError, "did you mean 'sam-nano'", id="misspelt"),
    pytest.param("sam-vit-h", None, EnvironmentFault, "sam_vit_h_4b8939.pth", id="no weights"),
    pytest.param("sam-vit-h", "absent.pth", EnvironmentFault, "no such file", id="absent vit"),
    pytest.param("sam-nano", "absent.safetensors", EnvironmentFault, "no such file", id="absent nano"),
]


@pytest.mark.parametrize(("name", "file", "error", "message"), BAD_REQUESTS)
def test_load_sam__explains_bad_requests(
    tmp_path: Path, name: str, file: str | None, error: type[WeakSamError], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_sam(name, None if file is None else tmp_path / file)


def test_load_sam__vit_weights_round_trip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(segment_anything.sam_model_registry, "vit_b", tiny_vit_sam)
    source = shaken(tiny_vit_sam())
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    loaded = load_sam("sam-vit-b", tmp_path / "vit.pth")
    for name, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_load_sam__another_vit_is_named(tmp_path: Path) -> None:
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1024)}, tmp_path / "vit.pth")
    with pytest.raises(SchemaError, match="weights of sam-vit-l, not of sam-vit-b"):
        load_sam("sam-vit-b", tmp_path / "vit.pth")


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"PK\x03\x04 cut"], ids=["empty", "text", "cut archive"]
)
def test_read_published__damaged_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=r"sam\.pth: damaged checkpoint"):
        read_published(path)


def test_read_published__not_a_state_dict(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "sam.pth")
    with pytest.raises(SchemaError, match="not a mapping of tensor names"):
        read_published(tmp_path / "sam.pth")


def test_compile__changes_nothing() -> None:
    segmenter = SamSegmenter("tiny", shaken(tiny_vit_sam()))
    before = segmenter.encode(picture(40, 56)).embedding_1CHW
    segmenter.compile(backend="eager")
    torch.testing.assert_close(segmenter.encode(picture(40, 56)).embedding_1CHW, before)
