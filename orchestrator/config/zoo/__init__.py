"""Sections of the zoo's models, a file a family. Importing this package registers them all."""

from orchestrator.config.zoo import efficientnet, resnet

__all__ = ["efficientnet", "resnet"]
