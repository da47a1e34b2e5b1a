"""Room `prompt`: from maps to points that ask a segmenter for masks."""
