"""Single-device PyTorch models; nothing here imports the rest of orch."""

from .registry import Published, create, names, options_of, published, register

__all__ = ["Published", "create", "names", "options_of", "published", "register"]
