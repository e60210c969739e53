"""Text as numbered tokens."""
