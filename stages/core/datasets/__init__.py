"""Data sets as stages see them: splits of images and image-level tags, and the one image loader."""
