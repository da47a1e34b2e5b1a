"""Stage `predict`: a trained detector on images that belong to no data set."""
