"""Published weights: what there is, where it comes from, where it is kept, and whether a file is what it claims."""
