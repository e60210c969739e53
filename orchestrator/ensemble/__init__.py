"""Ensembles of trained models, without Ray."""
