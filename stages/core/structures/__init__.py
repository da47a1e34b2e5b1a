"""What one image holds, as columns that stay together: detections, masks, and the base of candidates of every stage."""
