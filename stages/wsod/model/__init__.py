"""The weakly supervised detector: two-stream head, refinement heads, DropBlock."""
