"""Data: sources, splits, the epoch plan, augmentation and the in-memory loader."""
