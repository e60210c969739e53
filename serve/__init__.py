"""Answers over HTTP: predictor, protocol types and the Ray Serve application."""
