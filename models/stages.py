"""The one cut through a model that pipelines, unfreezing, layer-wise rates and taps share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

State = torch.Tensor | tuple[torch.Tensor, ...]
"""What passes from a stage to the next: one tensor, or a flat tuple of tensors."""


class Stage(NamedTuple):
    """A step of a model's forward pass. Composing all of them is `forward`.

    Attributes:
        name: unique in its model; a dot separates a group from a block, as in ``layer1.0``.
        fn: computes the step. It may be a bound method; it owns nothing.
        modules: the model's modules whose parameters the step uses.
        loose: parameters that it uses and that the model itself holds, such as a class token.
        shared: parameters of an earlier stage that it uses too, such as an embedding that is also
            the head. They are that stage's, not this one's.
    """

    name: str
    fn: Callable[[Any], Any]
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()
    shared: tuple[nn.Parameter, ...] = ()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every parameter that the step uses."""
        yield from self.loose
        for module in self.modules:
            yield from module.parameters()


def belongs(stage: str, name: str) -> bool:
    """Whether a stage is `name` itself or a block of the group `name`: layer1.0 is of layer1."""
    return stage == name or stage.startswith(name + ".")


def run_stages(stages: Sequence[Stage], x: Any, *, recompute: bool = False) -> Any:
    """Composes stages.

    Args:
        stages: in order.
        x: the first stage's input.
        recompute: keep only the stages' inputs for the backward pass and compute the rest again
            (Chen et al., 2016); has no effect while gradients are off.
    """
    recompute = recompute and torch.is_grad_enabled()
    for stage in stages:
        x = _checkpointed(stage, x) if recompute else stage.fn(x)
    return x


def _checkpointed(stage: Stage, x: State) -> Any:
    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), _statistics_aside(stage.modules)

    return checkpoint(stage.fn, x, use_reentrant=False, context_fn=contexts)


@contextlib.contextmanager
def _statistics_aside(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Lets batch norms write to copies: computing a stage again must not count its batch twice."""
    norms = [m for root in modules for m in root.modules() if isinstance(m, _BatchNorm)]
    kept = [dict(norm._buffers) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({k: None if b is None else b.clone() for k, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
