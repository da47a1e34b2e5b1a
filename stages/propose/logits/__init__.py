"""Boxes and quality of masks, read off low-resolution logits without drawing the masks."""
