"""Engines: how one optimizer step is applied."""
