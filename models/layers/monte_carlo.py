"""Inference with dropout left on, and how uncertain it says a prediction is.

Axes: N batch, K classes, S passes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from .drop_path import DropPath
from .dropouts import ConcreteDropout, Dropping

_DROPPING = (
    nn.modules.dropout._DropoutNd,
    Dropping,
    ConcreteDropout,
    DropPath,
    nn.RNNBase,
    nn.MultiheadAttention,
)


@contextlib.contextmanager
def dropout_on(model: nn.Module, also: tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Evaluation mode, but for dropout, while it lasts; the modes from before come back after.

    Known are torch's dropout layers, its recurrent ones and multi-head attention, and those of
    this package.

    Args:
        model: any module.
        also: further classes that do nothing but drop in training mode.

    Raises:
        ValueError: if nothing in the model drops, where all passes would be equal.
    """
    modes = [(module, module.training) for module in model.modules()]
    dropping = [m for m, _ in modes if isinstance(m, also) or _drops(m)]
    if not dropping:
        raise ValueError(
            f"Monte-Carlo dropout needs a model that drops, but {type(model).__name__} does not; "
            "train it with a dropout rate above 0, or name its dropout classes in `also`"
        )
    model.eval()
    try:
        for module in dropping:
            module.training = True
        yield
    finally:
        for module, training in modes:
            module.training = training


def _drops(module: nn.Module) -> bool:
    if isinstance(module, nn.TransformerEncoderLayer):
        # In evaluation mode its fused kernel passes its dropout layers by.
        return any(map(_drops, module.children()))
    rates = (getattr(module, name, 0) for name in ("p", "rate", "dropout"))
    return isinstance(module, _DROPPING) and any(
        isinstance(r, int | float) and r > 0 for r in rates
    )


@dataclass(frozen=True)
class MonteCarlo:
    """Predictions of many passes with dropout on.

    Attributes:
        mean: probabilities [N, K], averaged over the passes.
        std: their standard deviation over the passes [N, K].
        entropy: of `mean`, in nats [N]: the whole uncertainty.
        information: mutual information of prediction and mask, in nats [N]: the part of `entropy`
            in which the passes disagree, so that more data would lower it (Houlsby et al., 2011).
    """

    mean: torch.Tensor
    std: torch.Tensor
    entropy: torch.Tensor
    information: torch.Tensor


@torch.no_grad()
def monte_carlo(
    model: nn.Module,
    x: torch.Tensor,
    samples: int = 20,
    also: tuple[type[nn.Module], ...] = (),
) -> MonteCarlo:
    """Averages a classifier's probabilities over dropout masks (Gal and Ghahramani, 2016).

    Args:
        model: gives logits [N, K] in evaluation mode.
        x: its input.
        samples: how many passes; masks come from torch's global random state.
        also: as in `dropout_on`.

    Raises:
        ValueError: for fewer than two passes, or if nothing in the model drops.
    """
    if samples < 2:
        raise ValueError(f"samples must be >= 2, but got {samples}; one pass has no spread")
    with dropout_on(model, also):
        log_p_SNK = torch.stack([model(x).float().log_softmax(-1) for _ in range(samples)])
    p_SNK = log_p_SNK.exp()
    mean_NK = p_SNK.mean(0)
    entropy_N = torch.special.entr(mean_NK).sum(-1)
    within_N = torch.special.entr(p_SNK).sum(-1).mean(0)
    # The difference of two rounded numbers; it can't be negative.
    information_N = (entropy_N - within_N).clamp(min=0)
    return MonteCarlo(mean_NK, p_SNK.std(0), entropy_N, information_N)
