"""The embedded `shapes` set, drawn on demand."""
