"""Trackers: who is told about metrics."""
