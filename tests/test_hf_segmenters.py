"""Segmenters of the transformers library: its processor's and model's own answers through our interface."""

from __future__ import annotations

import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.core.errors import EnvironmentFault, ImageError, SchemaError
from stages.core.segmenters.box_to_mask import MaskRule, masks_of_boxes
from stages.core.segmenters.checkpoint_checks import check_architecture
from stages.core.segmenters.hf_checkpoints import family_of
from stages.core.segmenters.loading import load_segmenter
from stages.core.segmenters.protocol import SelectedMasks
from stages.core.weights.table import PUBLISHED, segmenter_kind
from stages.propose.config import ProposeConfig
from stages.propose.decoding import decode_batch
from stages.propose.grid import grid_points
from stages.propose.prompting import build_prompts
from tests.hf_builders import BUILDERS, SIZE, save_tiny, tiny
from tests.propose_builders import prompt_rows
from tests.segmenter_builders import PROMPTS, check_decode_above, picture

NAMES = tuple(BUILDERS)
read_only_tiny = cache(tiny)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_tiny(name, tmp_path_factory.mktemp("hf") / name) for name in NAMES}


def library_answer(
    name: str, image: NDArray[np.uint8], points: Any, labels: Any, boxes: Any, multimask: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Low-resolution logits, predicted IoUs and full-size logits straight from the library."""
    model, processor = read_only_tiny(name)
    prompts: dict[str, Any] = {}
    if points is not None:
        prompts |= {"input_points": [points], "input_labels": [labels]}
    if boxes is not None:
        prompts["input_boxes"] = [boxes]
    inputs = processor(images=image, **prompts, return_tensors="pt")
    sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
    with torch.no_grad():
        out = model(**inputs, multimask_output=multimask)
    extra: dict[str, Any] = {"mask_threshold": 0.0, "binarize": False}
    if len(sizes) == 2:
        extra["pad_size"] = {"height": SIZE, "width": SIZE}
    full = processor.image_processor.post_process_masks(out.pred_masks, *sizes, **extra)[0]
    return out.pred_masks[0], out.iou_scores[0], full


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size_hw", [(30, 45), (64, 64), (130, 50)])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(("points", "labels", "boxes"), PROMPTS)
def test_decode__equals_the_library(
    folders: dict[str, Path], name: str, size_hw: tuple[int, int], multimask: bool, points: Any, labels: Any,
    boxes: Any,
) -> None:  # fmt: skip
    image = picture(*size_hw)
    low, iou, full = library_answer(name, image, points, labels, boxes, multimask)
    segmenter = load_segmenter(name, folders[name], "cpu")
    encoded = segmenter.encode(image)
    decoded = segmenter.decode(
        encoded, *(None if v is None else torch.tensor(v) for v in (points, labels, boxes)), multimask=multimask
    )  # fmt: skip
    ours, our_iou = decoded.low_res_logits, decoded.predicted_iou
    our_full = segmenter.upscale(ours, encoded)
    assert (ours.shape, our_full.shape[-2:]) == (low.shape, size_hw)
    if name == "hq-sam-vit-b" and multimask:  # the library's masks are sorted, ours are not
        order = our_iou.argsort(dim=1, descending=True)
        our_iou = our_iou.gather(1, order)
        ours = ours.gather(1, order[..., None, None].expand_as(ours))
        our_full = our_full.gather(1, order[..., None, None].expand_as(our_full))
    torch.testing.assert_close(ours, low, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_iou, iou, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(our_full, full, rtol=1e-4, atol=1e-5)


def test_decode__hq_masks_keep_the_order_of_the_tokens(folders: dict[str, Path]) -> None:
    segmenter: Any = load_segmenter("hq-sam-vit-b", folders["hq-sam-vit-b"], "cpu")
    encoded = segmenter.encode(picture(40, 60))
    points, labels = torch.rand(6, 1, 2) * 40, torch.ones(6, 1)
    before = segmenter.decode(encoded, points, labels, None, multimask=True)
    head = segmenter.model.mask_decoder.iou_prediction_head.proj_out
    with torch.no_grad():
        head.bias[1:] += torch.tensor([0.0, 5.0, 10.0])  # another order by predicted IoU
    after = segmenter.decode(encoded, points, labels, None, multimask=True)
    torch.testing.assert_close(after.low_res_logits, before.low_res_logits)
    torch.testing.assert_close(
        after.predicted_iou - before.predicted_iou, torch.tensor([0.0, 5.0, 10.0]).expand(6, 3), atol=1e-4, rtol=0
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_encode__once_and_decode_never_again(folders: dict[str, Path], name: str) -> None:
    segmenter: Any = load_segmenter(name, folders[name], "cpu")
    calls: list[int] = []
    segmenter.model.vision_encoder.register_forward_hook(lambda *_: calls.append(1))
    encoded = segmenter.encode(picture(40, 60))
    for _ in range(3):
        segmenter.decode(encoded, None, None, torch.tensor([[1.0, 2.0, 30.0, 20.0]]), multimask=False)
    assert len(calls) == 1


@pytest.mark.parametrize("name", NAMES)
def test_decode_above__what_decode_draws_above_the_floor(folders: dict[str, Path], name: str) -> None:
    segmenter = load_segmenter(name, folders[name], "cpu")
    check_decode_above(segmenter, points_per_prompt=2)
    encoded = segmenter.encode(picture(40, 60))
    points, labels = torch.rand(7, 2, 2) * 40, torch.ones(7, 2)
    none = segmenter.decode_above(
        encoded, points, labels, None, multimask=True, floor_PM=torch.full((7, 3), float("inf"))
    )
    assert none.logits_NHW.shape[0] == 0
    assert segmenter.upscale(none.logits_NHW, encoded).shape == (0, 40, 60)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size_hw", [(48, 160), (200, 64), (64, 64)])
def test_boxes__of_images_of_any_shape(
    folders: dict[str, Path], name: str, size_hw: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes that propose reads off logits are those of the full-size masks, to a pixel of the coarser grid."""
    height, width = size_hw
    segmenter: Any = load_segmenter(name, folders[name], "cpu")
    encoded = segmenter.encode(picture(height, width))
    rows, columns = encoded.logit_extent(torch.zeros(1, 16, 16))
    squashes = name in ("sam2-hiera-tiny", "edgetam")
    assert (rows == columns == 16) is (squashes or height == width)
    assert encoded.via_input is not squashes
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(16) + 0.5, indexing="ij")
    centres = torch.tensor([[0.4, 0.55], [0.7, 0.3]]) * torch.tensor([rows, columns])
    blobs = torch.stack(
        [
            1 - ((y - cy) / (0.2 * rows)) ** 2 - ((x - cx) / (0.2 * columns)) ** 2
            for cy, cx in centres.tolist()
        ]
    )
    answer = SelectedMasks(torch.arange(2), torch.zeros(2, dtype=torch.int64), blobs, torch.ones(2, 3))
    monkeypatch.setattr(segmenter, "decode_above", lambda *_, **__: answer)
    prompts = build_prompts(grid_points(2, height, width)[:2], prompt_rows(), (), class_prompts=False)
    config = ProposeConfig(min_side_px=1, stability_score_thresh=0)
    found = decode_batch(segmenter, encoded, prompts, np.arange(2), config)
    masks = (segmenter.upscale(blobs, encoded) > 0).numpy()
    coarse_x, coarse_y = max(1, width / encoded.input_width), max(1, height / encoded.input_height)
    tolerance = np.array([coarse_x, coarse_y, coarse_x, coarse_y]) + 1e-3
    assert len(found) == 2
    for box, mask in zip(found.boxes_xyxy.tolist(), masks, strict=True):
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert (np.abs(np.array(box) - tight) <= tolerance).all(), (box, tight)


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_boxes__prompts_of_wsis(folders: dict[str, Path], name: str) -> None:
    segmenter = load_segmenter(name, folders[name], "cpu")
    boxes = np.array([[4, 5, 30, 28], [20, 2, 58, 39]], dtype=np.float32)
    masks = masks_of_boxes(segmenter, picture(40, 60), boxes, MaskRule(box_margin_fraction=0.0))
    assert len(masks) == 2
    for (x1, y1, x2, y2), made in zip(boxes.astype(int), masks, strict=True):
        assert made.mask_HW.shape == (40, 60)
        assert made.mask_HW.any()
        outside = made.mask_HW.copy()
        outside[y1:y2, x1:x2] = False
        assert not outside.any()


def test_encode__thin_images(folders: dict[str, Path]) -> None:
    with pytest.raises(ImageError, match="4000 x 2 px is too thin"):
        load_segmenter("hq-sam-vit-b", folders["hq-sam-vit-b"], "cpu").encode(picture(2, 4000))
    squashed = load_segmenter("sam2-hiera-tiny", folders["sam2-hiera-tiny"], "cpu").encode(picture(1, 300))
    assert (squashed.input_height, squashed.input_width) == (SIZE, SIZE)


def test_families__every_hub_entry_has_one() -> None:
    for entry in PUBLISHED:
        assert (family_of(segmenter_kind(entry.name)) is not None) is bool(entry.hub), entry.name


def broken(folder: Path, target: Path, how: str) -> Path:
    """A copy of a checkpoint, damaged."""
    shutil.copytree(folder, target)
    weights, config = target / "model.safetensors", target / "config.json"
    if how == "config":
        config.unlink()
    elif how == "processor":
        (target / "processor_config.json").unlink()
    elif how == "other processor":
        text = (target / "processor_config.json").read_text()
        (target / "processor_config.json").write_text(text.replace("64", "96"))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    elif how == "pickle":
        torch.save(load_file(weights), target / "pytorch_model.bin")
        weights.unlink()
    else:
        state = load_file(weights)
        name = "mask_decoder.iou_token.weight"
        state[name] = torch.zeros(1, 16)
        if how == "lacking":
            del state[name]
        save_file(state, weights, {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("config", "no readable config.json"),
        ("processor", "no settings of an image processor"),
        ("other processor", r"makes \[96\] px, the model takes 64 px"),
        ("cut", "cannot be read as Sam2Model"),
        ("pickle", "cannot be read as Sam2Model"),
        ("lacking", r"lacks \['mask_decoder.iou_token.weight'\]"),
        ("shape", "other shapes: .*iou_token"),
    ],
)
def test_load__damaged_folders(folders: dict[str, Path], tmp_path: Path, how: str, message: str) -> None:
    folder = broken(folders["sam2-hiera-tiny"], tmp_path / "model", how)
    with pytest.raises(SchemaError, match=message):
        load_segmenter("sam2-hiera-tiny", folder, "cpu")
    with pytest.raises(SchemaError, match=message):
        check_architecture("sam2-hiera-tiny", folder)


def test_load__another_architecture_is_named(folders: dict[str, Path]) -> None:
    with pytest.raises(SchemaError, match=r"weights of 'sam_hq', not of 'sam2'.*\n.*hq-sam"):
        load_segmenter("sam2-hiera-tiny", folders["hq-sam-vit-b"], "cpu")


def test_load__video_checkpoints_hold_the_image_model(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "video"
    shutil.copytree(folders["sam2-hiera-tiny"], folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "sam2_video"}))
    state = load_file(folder / "model.safetensors") | {"memory_temporal_positional_encoding": torch.zeros(3)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    image, box = picture(40, 60), torch.tensor([[1.0, 2.0, 30.0, 20.0]])
    answers = []
    for path in (folder, folders["sam2-hiera-tiny"]):
        segmenter = load_segmenter("sam2-hiera-tiny", path, "cpu")
        answers.append(segmenter.decode(segmenter.encode(image), None, None, box, multimask=True))
    assert torch.equal(answers[0].low_res_logits, answers[1].low_res_logits)


@pytest.mark.parametrize(
    ("checkpoint", "error", "message"),
    [
        (None, EnvironmentFault, "weaksam weights get sam2.1-hiera-tiny"),
        ("facebook/sam2.1-hiera-tiny", EnvironmentFault, "network is not to be used"),
        ("/no/such/folder", EnvironmentFault, "no such folder"),
    ],
)
def test_load__absent_weights(
    checkpoint: str | None, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(error, match=message):
        load_segmenter("sam2.1-hiera-tiny", None if checkpoint is None else Path(checkpoint), "cpu")


def test_load__a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sam2.pt").write_bytes(b"x")
    with pytest.raises(SchemaError, match="from a folder written by save_pretrained"):
        load_segmenter("sam2-hiera-tiny", tmp_path / "sam2.pt", "cpu")


def test_load__without_the_extra(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(EnvironmentFault, match=r'pip install "weaksam\[hf\]"'):
        load_segmenter("edgetam", folders["edgetam"], "cpu")
