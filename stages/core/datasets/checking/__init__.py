"""What is right and wrong with a data set, before anything is learned from it."""
