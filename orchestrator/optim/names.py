"""Parameters by the names that a file gives them: patterns, or stages of the model."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from orchestrator.errors import UserError
from orchestrator.models.stages import Stage, belongs


def bare_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by its own name, under which a parametrised weight is an ``original``."""
    return {
        name.replace("parametrizations.", "").removesuffix(".original"): parameter
        for name, parameter in model.named_parameters()
    }


def match_parameters(model: nn.Module, pattern: str, *, key: str) -> dict[str, nn.Parameter]:
    """The parameters that a pattern of names (`layer1.*`) or the name of a stage means.

    Args:
        model: it may have `stages`.
        key: where in the file the pattern stands, for the message.

    Raises:
        UserError: if it means none, naming the modules and stages that there are.
    """
    names = bare_names(model)
    stages = stages_of(model)
    of_stage = {
        id(parameter)
        for stage in stages
        if belongs(stage.name, pattern)
        for parameter in stage.parameters()
    }
    found = {
        name: parameter
        for name, parameter in names.items()
        if fnmatchcase(name, pattern) or id(parameter) in of_stage
    }
    if not found:
        known = sorted({name.split(".")[0] + ".*" for name in names})
        groups = dict.fromkeys(stage.name.split(".")[0] for stage in stages)
        also = f"; stages are {', '.join(groups)}" if groups else ""
        raise UserError(
            f"{key}: {pattern!r} matches no parameter; there are {', '.join(known)}{also}"
        )
    return found


def stages_of(model: nn.Module) -> Sequence[Stage]:
    """The model's stages; none where it has no `stages`."""
    return model.stages() if hasattr(model, "stages") else ()  # type: ignore[operator]
