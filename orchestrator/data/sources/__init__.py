"""Data sources: one file a source, each with a `load`."""
