"""Stage `retrain`: an ordinary detector trained on pseudo ground truth, with RoI drop."""
