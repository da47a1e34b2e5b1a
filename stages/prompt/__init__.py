"""Stage `prompt`: from maps to points that prompt a segmenter for masks."""
