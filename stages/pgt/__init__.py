"""Stage `pgt`: detections of the train split turned into training boxes (paper Algorithm 2)."""
