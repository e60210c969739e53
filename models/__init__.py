"""Single-device PyTorch models; nothing here imports the rest of orch."""

from .registry import (
    Published,
    create,
    create_sequence_model,
    names,
    options_of,
    published,
    reads_tokens,
    register,
)

__all__ = [
    "Published",
    "create",
    "create_sequence_model",
    "names",
    "options_of",
    "published",
    "reads_tokens",
    "register",
]
