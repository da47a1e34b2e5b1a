"""Convolutional and transformer backbones from timm, as lists of feature maps.

One builder serves every stage that needs features (classifier, WSOD, detectors, embedded segmenter).
Besides any timm feature backbone it knows `lite0-embedded`: EfficientNet-Lite0 whose ImageNet weights
travel inside the package, so that the whole chain runs offline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from stages.core.errors import ConfigError, EnvironmentFault, SchemaError, did_you_mean

EMBEDDED_NAME = "lite0-embedded"
EMBEDDED_FILE = "lite0.safetensors"
EMBEDDED_ARCHITECTURE = "tf_efficientnet_lite0"
TIMM_NAMES = {
    EMBEDDED_NAME: EMBEDDED_ARCHITECTURE,
    "resnet50-fpn": "resnet50.tv_in1k",
    "resnet50-fpn-v2": "resnet50.tv2_in1k",
}
"""What timm calls the backbones that have a name of their own here: that of the package, and torchvision's."""
PROBE_HW = (64, 64)
"""No timm model of one size has it."""


class Backbone(nn.Module):
    """A timm feature extractor with known channels, strides and input statistics.

    Attributes:
        channels: channels of each returned map, in the order of `strides`.
        strides: input pixels per cell of each returned map, ascending.
        mean, std: per-channel statistics of the weights' training, for images in [0, 1].
        name: what errors call it.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        frozen_bn: bool = False,
        name: str = "backbone",
    ) -> None:
        super().__init__()
        self.body = body
        self.name = name
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.mean = tuple(float(value) for value in mean)
        self.std = tuple(float(value) for value in std)
        self.frozen_bn = frozen_bn
        if frozen_bn:
            for layer in batch_norms(body):
                layer.requires_grad_(False)
        self.train(self.training)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """Return one map [B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])] per stride."""
        # Depthwise convolutions run two to three times faster on a CPU with channels last.
        features: list[Tensor] = self.body(images_BCHW.contiguous(memory_format=torch.channels_last))
        return features

    def freeze_through(self, stride: int, setting: str = "freeze_through_stride") -> None:
        """Fix every parameter up to the last layer at `stride` (0: none): early layers are generic and costly.

        That layer may have no parameters of its own, such as an activation: what comes before it counts.

        Raises:
            ConfigError: there are such layers, but none can be told from the rest; `setting` names what to change.
        """
        modules = [(name.removeprefix("model."), module) for name, module in self.body.named_modules()]
        there = {name for name, _ in modules}
        info: Any = self.body.feature_info
        # A level deeper than the last map may not have been built.
        levels = [
            (entry["module"], entry["reduction"])
            for entry in info.info
            if entry["module"] in there or entry["reduction"] <= self.strides[-1]
        ]
        reached = [module for module, reduction in levels if reduction <= stride]
        if not reached:
            return
        inside = [name == reached[-1] or name.startswith(f"{reached[-1]}.") for name, _ in modules]
        until = len(inside) - inside[::-1].index(True) if any(inside) else 0
        frozen = [
            parameter for _, module in modules[:until] for parameter in module.parameters(recurse=False)
        ]
        if not frozen:
            known = [reduction for module, reduction in levels if module in there]
            raise ConfigError(
                f"cannot tell which layers of {self.name} lie up to stride {stride}: it has no '{reached[-1]}'",
                where=setting,
                hint=f"train all layers (0), name another stride (of {known}), or take another backbone",
            )
        for parameter in frozen:
            parameter.requires_grad_(False)

    def probe(self) -> None:
        """Pass a small image through.

        Raises:
            ConfigError: the backbone takes images of one size only.
        """
        was_training = self.training
        self.eval()
        some = next(self.parameters())
        try:
            with torch.no_grad():
                self(torch.zeros(1, 3, *PROBE_HW, device=some.device, dtype=some.dtype))
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise ConfigError(
                f"takes images of one size only ({str(error) or type(error).__name__})",
                where=self.name,
                hint="use a backbone for images of any size, such as a convolutional network",
            ) from error
        finally:
            self.train(was_training)

    def train(self, mode: bool = True) -> Backbone:
        """Switch to training mode, except for batch normalisation when `frozen_bn` was asked for."""
        super().train(mode)
        if self.frozen_bn:
            for layer in batch_norms(self.body):
                layer.eval()
        return self


def batch_norms(module: nn.Module) -> Iterator[nn.Module]:
    """Yield every batch-normalisation layer of `module` (timm's fused BN + activation included)."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            yield layer


def build_backbone(
    name: str,
    out_strides: Sequence[int],
    pretrained: bool | Path = True,
    in_chans: int = 3,
    frozen_bn: bool = False,
) -> Backbone:
    """Build a timm backbone that returns its last feature map at each of `out_strides`.

    Args:
        name: a key of `TIMM_NAMES`, or any timm model name that can return features (`timm.list_models()`).
        out_strides: wanted strides, ascending; layers deeper than the last one are not built.
        pretrained: True for ImageNet weights (embedded ones, else from timm's hub), False for random
            weights, or a safetensors file holding a state dict with timm's names.
        in_chans: input channels; pretrained stems are adapted as timm does.
        frozen_bn: keep batch normalisation in evaluation mode with fixed affine parameters.

    Raises:
        ConfigError: unknown model, or the model has no map at one of the strides.
        EnvironmentFault: the pretrained weights cannot be fetched (offline, no cache).
        SchemaError: the given weight file does not fit the model.
    """
    architecture = TIMM_NAMES.get(name, name)
    indices = _feature_indices(architecture, tuple(out_strides))
    from_hub = pretrained is True and name != EMBEDDED_NAME
    with _readable_hub_errors(name, from_hub):
        body: Any = timm.create_model(
            architecture,
            features_only=True,
            feature_cls="getter",
            out_indices=indices,
            in_chans=in_chans,
            pretrained=from_hub,
        )
    if isinstance(pretrained, Path):
        _load_pruned(body, _read_weights(pretrained), str(pretrained), in_chans)
    elif pretrained and name == EMBEDDED_NAME:
        _load_pruned(body, embedded_weights(), EMBEDDED_FILE, in_chans)
    settings = timm.get_pretrained_cfg(architecture) or timm.models.PretrainedCfg()
    info = body.feature_info
    body.to(memory_format=torch.channels_last)
    return Backbone(body, info.channels(), info.reduction(), settings.mean, settings.std, frozen_bn, name)


def embedded_weights() -> dict[str, Tensor]:
    """Read the EfficientNet-Lite0 ImageNet weights shipped in the package: float32, timm's names."""
    data = resources.files("stages.core").joinpath("embedded", EMBEDDED_FILE).read_bytes()
    return {key: value.float() for key, value in load(data).items()}


def _feature_indices(architecture: str, out_strides: tuple[int, ...]) -> tuple[int, ...]:
    """Return, for each wanted stride, the index of the deepest feature map that has it."""
    if not out_strides or list(out_strides) != sorted(set(out_strides)):
        raise ConfigError(f"out_strides must be ascending and distinct, got {out_strides}")
    if not timm.is_model(architecture):
        known = [*timm.list_models(), *TIMM_NAMES]
        raise ConfigError(f"unknown backbone {architecture!r}", hint=did_you_mean(architecture, known))
    with torch.device("meta"):
        try:
            body: Any = timm.create_model(architecture, features_only=True, feature_cls="getter")
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise ConfigError(f"backbone {architecture!r} cannot return feature maps: {error}") from error
    info = body.feature_info
    deepest = dict(zip(info.reduction(), info.out_indices, strict=True))
    missing = [stride for stride in out_strides if stride not in deepest]
    if missing:
        raise ConfigError(
            f"backbone {architecture!r} has no feature map at strides {missing}",
            hint=f"its strides are {sorted(deepest)}",
        )
    return tuple(deepest[stride] for stride in out_strides)


def _load_pruned(body: nn.Module, weights: dict[str, Tensor], source: str, in_chans: int) -> None:
    """Load weights strictly for every tensor the pruned body has; deeper layers in the file are left out."""
    state = body.state_dict()
    loaded: dict[str, Tensor] = {}
    for key, own in state.items():
        name = key.removeprefix("model.")
        if name.endswith("num_batches_tracked"):
            loaded[key] = own
            continue
        value = weights.get(name)
        if value is not None and value.ndim == 4 and value.shape[1] == 3 and own.shape[1] == in_chans != 3:
            value = adapt_input_conv(in_chans, value)
        if value is None or value.shape != own.shape:
            found = "is absent" if value is None else f"has shape {tuple(value.shape)}"
            raise SchemaError(f"tensor {name!r} {found}, the backbone needs {tuple(own.shape)}", where=source)
        loaded[key] = value
    body.load_state_dict(loaded)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return {key: value.float() for key, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise SchemaError(f"not a readable safetensors file ({error})", where=path) from error


@contextmanager
def _readable_hub_errors(name: str, from_hub: bool) -> Iterator[None]:
    """Turn the many ways a download can fail into one message with a hint."""
    try:
        yield
    except Exception as error:
        if not from_hub:
            raise
        raise EnvironmentFault(
            f"pretrained weights of backbone {name!r} cannot be had ({type(error).__name__}: {error})",
            hint=f"connect once so that timm caches them, give a safetensors file, or use {EMBEDDED_NAME}",
        ) from error
