"""Single-device PyTorch models; nothing here imports the rest of orch."""

from .registry import create, names, options_of, register

__all__ = ["create", "names", "options_of", "register"]
