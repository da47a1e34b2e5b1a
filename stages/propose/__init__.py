"""Stage `propose`: class-agnostic boxes from a promptable segmenter (paper, section 3.2)."""
