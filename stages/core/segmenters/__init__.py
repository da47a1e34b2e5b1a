"""Promptable segmenters behind one protocol: Segment Anything, its relatives, and the shipped sam-nano."""
