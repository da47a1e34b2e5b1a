"""Faster R-CNN and Mask R-CNN, from torchvision's parts."""
