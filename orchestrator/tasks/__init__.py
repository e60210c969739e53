"""Tasks: what is computed from a batch."""
