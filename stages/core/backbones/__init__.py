"""Backbones: images to feature maps at several strides, from timm and VGG16."""
