"""Segmenters of the transformers library with random weights, small enough to run in milliseconds (64 px)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

hf: Any = transformers  # parts of the library are untyped
SIZE, WIDTH = 64, 32
DECODER: dict[str, Any] = {
    "hidden_size": WIDTH, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32,
}  # fmt: skip
PROMPTS: dict[str, Any] = {
    "hidden_size": WIDTH, "image_size": SIZE, "patch_size": 16, "mask_input_channels": 8,
}  # fmt: skip
LEVELS = [[16, 16], [8, 8], [4, 4]]


def _sam2() -> tuple[Any, Any]:
    backbone = hf.Sam2HieraDetConfig(
        hidden_size=12, num_attention_heads=1, image_size=[SIZE, SIZE], patch_kernel_size=[7, 7],
        patch_stride=[4, 4], patch_padding=[3, 3], window_positional_embedding_background_size=[4, 4],
        blocks_per_stage=[1, 2, 2, 1], embed_dim_per_stage=[12, 24, 48, 96], window_size_per_stage=[4, 4, 4, 4],
        num_attention_heads_per_stage=[1, 1, 2, 2], global_attention_blocks=[4],
    )  # fmt: skip
    vision = hf.Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[96, 48, 24, 12], backbone_feature_sizes=LEVELS,
        fpn_hidden_size=WIDTH,
    )  # fmt: skip
    config = hf.Sam2Config(
        vision_config=vision, prompt_encoder_config=hf.Sam2PromptEncoderConfig(**PROMPTS),
        mask_decoder_config=hf.Sam2MaskDecoderConfig(**DECODER),
    )  # fmt: skip
    return hf.Sam2Model(config), _squashing_processor()


def _edgetam() -> tuple[Any, Any]:
    slim = {"embed_dim": [8, 16, 24, 32], "depth": [1, 1, 1, 1]}
    features = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    backbone = hf.TimmWrapperConfig(architecture="repvit_m0_9", model_args={**features, **slim})
    vision = hf.EdgeTamVisionConfig(
        backbone_config=backbone, backbone_channel_list=[32, 24, 16, 8], backbone_feature_sizes=LEVELS,
        fpn_hidden_size=WIDTH,
    )  # fmt: skip
    config = hf.EdgeTamConfig(
        vision_config=vision, prompt_encoder_config=hf.EdgeTamPromptEncoderConfig(**PROMPTS),
        mask_decoder_config=hf.EdgeTamMaskDecoderConfig(**DECODER),
    )  # fmt: skip
    return hf.EdgeTamModel(config), _squashing_processor()


VIT: dict[str, Any] = {
    "hidden_size": 24, "output_channels": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIZE, "patch_size": 16, "window_size": 2, "global_attn_indexes": [1, 2], "num_pos_feats": 16,
    "mlp_dim": 48, "initializer_range": 0.02,
}  # fmt: skip


def _hq_sam() -> tuple[Any, Any]:
    config = hf.SamHQConfig(
        vision_config=hf.SamHQVisionConfig(**VIT), prompt_encoder_config=hf.SamHQPromptEncoderConfig(**PROMPTS),
        mask_decoder_config=hf.SamHQMaskDecoderConfig(**DECODER, vit_dim=24),
    )  # fmt: skip
    return hf.SamHQModel(config), hf.SamHQProcessor(_padding_images())


def _sam() -> tuple[Any, Any]:
    config = hf.SamConfig(
        vision_config=hf.SamVisionConfig(**VIT), prompt_encoder_config=hf.SamPromptEncoderConfig(**PROMPTS),
        mask_decoder_config=hf.SamMaskDecoderConfig(**DECODER),
    )  # fmt: skip
    return hf.SamModel(config), hf.SamProcessor(_padding_images())


def _squashing_processor() -> Any:
    return hf.Sam2Processor(hf.Sam2ImageProcessor(size={"height": SIZE, "width": SIZE}))


def _padding_images() -> Any:
    return hf.SamImageProcessor(size={"longest_edge": SIZE}, pad_size={"height": SIZE, "width": SIZE})


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "sam2-hiera-tiny": _sam2,
    "hq-sam-vit-b": _hq_sam,
    "edgetam": _edgetam,
    "hf-sam-vit-b": _sam,
}
"""Segmenter name -> random model and its processor."""


def tiny(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A random model in evaluation mode, all its weights away from zero, and its processor."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval(), processor


def save_tiny(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model and its processor as a user would, with ``save_pretrained``."""
    model, processor = tiny(name, seed)
    hf.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
