"""Detectors of every architecture: specification, training, checkpoint, inference, test-time augmentation."""
