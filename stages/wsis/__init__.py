"""Stage `wsis`: pseudo masks from pseudo boxes, and an instance segmenter trained on them."""
