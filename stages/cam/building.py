"""From settings to a classifier, from a classifier to a file, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.cam.classifier import build_hybrid, build_vit
from stages.cam.config import CamConfig
from stages.cam.conv_classifier import build_conv
from stages.cam.maps import MapRule, TagClassifier
from stages.core.config import build_config
from stages.core.errors import ConfigError, SchemaError
from stages.core.weights.checkpoints import load_weights, read_metadata, save_weights

KIND = "multi-class-token classifier"
ARCHITECTURE = ("architecture", "backbone", "hybrid", "attention_fusion", "pos_embed_interpolation")
"""Settings from which the model of a checkpoint is rebuilt."""


def build_classifier(config: CamConfig, num_classes: int, pretrained: bool | Path) -> TagClassifier:
    """Build the classifier that the settings describe.

    Args:
        config: architecture and backbone.
        num_classes: of the split.
        pretrained: whether the backbone starts from ImageNet weights, or the file of its weights.

    Raises:
        ConfigError: unknown backbone, one of another architecture, or a cross layer that it does not have.
        EnvironmentFault: pretrained weights cannot be had.
    """
    if config.architecture == "cnn":
        return build_conv(num_classes, config.backbone, pretrained)
    if config.architecture == "vit":
        model = build_vit(
            num_classes, config.backbone, pretrained, config.attention_fusion, config.pos_embed_interpolation
        )
    else:
        model = build_hybrid(num_classes, config, pretrained)
    depth = len(model.encoder.blocks)
    if any(layer >= depth for layer in config.cross_layers):
        raise ConfigError(
            f"cross_layers {config.cross_layers} of a classifier with {depth} layers",
            where="cam.cross_layers",
            hint=f"layers are counted from 0: use values below {depth}, or none for all",
        )
    return model


def map_rule(config: CamConfig) -> MapRule:
    """How maps are made."""
    return MapRule(
        tta_scales=config.tta_scales,
        tta_hflip=config.tta_hflip,
        max_size=config.max_size,
        cells_per_token=config.cells_per_token,
        affinity=config.affinity,
        affinity_temperature=config.affinity_temperature,
        cross_layers=config.cross_layers,
        test_logit_thresh=config.test_logit_thresh,
    )


def save_classifier(path: Path, model: TagClassifier, config: CamConfig, classes: Sequence[str]) -> None:
    """Write weights with everything the model is rebuilt from."""
    settings = config.model_dump(mode="json")
    architecture = {name: settings[name] for name in ARCHITECTURE if name in settings}
    save_weights(path, model, {"kind": KIND, "classes": list(classes), "architecture": architecture})


def with_architecture(config: CamConfig, architecture: Mapping[str, Any]) -> CamConfig:
    """The settings with the architecture of a checkpoint in the place of their own."""
    layers = [("settings", config.model_dump()), ("checkpoint", dict(architecture))]
    return build_config(CamConfig, layers)


def load_classifier(path: Path, config: CamConfig, classes: Sequence[str]) -> TagClassifier:
    """Read a classifier in evaluation mode; the checkpoint, not the settings, says what it is.

    Raises:
        MissingInputError: no such file.
        SchemaError: not a classifier, of other classes, or damaged.
        ConfigError: a cross layer is asked for that it does not have.
    """
    metadata = read_metadata(path)
    architecture: Any = metadata.get("architecture")
    if metadata.get("kind") != KIND or not isinstance(architecture, dict):
        raise SchemaError(
            f"holds {metadata.get('kind')!r}, {KIND!r} expected",
            where=path,
            hint="give a checkpoint of cam",
        )
    saved = with_architecture(config, architecture)
    model = build_classifier(saved, len(classes), pretrained=False)
    load_weights(path, model, {"classes": list(classes)})
    return model.eval()
