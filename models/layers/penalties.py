"""Layers with a term of their own in the loss, such as a prior's of their weights.

Any module may bring one: it has a method `penalty`, which gives the term of the forward pass that
was last made in training mode, once. Whoever trains adds the terms to the mean loss of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Penalised(Protocol):
    """A module with a term of its own in the loss."""

    def penalty(self) -> torch.Tensor | None:
        """Takes the term of the last forward pass in training mode; None where there was none.

        Returns:
            A scalar with a graph, to be added to a mean over samples.
        """
        ...


class PriorPenalty(nn.Module):
    """A layer whose term is a divergence from a prior, for the whole training set.

    The loss is a mean over samples, so the term is divided by how many the training set has. It
    is computed in the forward pass, because there the weights are whole even where ranks hold a
    part of them each.

    Attributes:
        training_samples: how many samples the training set has; None keeps no term.
    """

    training_samples: int | None = None
    _kept: torch.Tensor | None = None

    def keep(self, divergence: torch.Tensor) -> None:
        """Keeps the term of this forward pass, in training mode only.

        Args:
            divergence: a scalar, for the whole training set.
        """
        if self.training and self.training_samples is not None:
            self._kept = divergence / self.training_samples

    def penalty(self) -> torch.Tensor | None:
        """See `Penalised.penalty`."""
        kept, self._kept = self._kept, None
        return kept


def penalised(model: nn.Module) -> list[Penalised]:
    """Every module of a model that has a term of its own in the loss."""
    return [module for module in model.modules() if isinstance(module, Penalised)]


def take_penalty(layers: Sequence[Penalised]) -> torch.Tensor | None:
    """The sum of the layers' terms, each taken once; None where no layer has one."""
    terms = [term for layer in layers if (term := layer.penalty()) is not None]
    return torch.stack(terms).sum() if terms else None


def set_training_samples(model: nn.Module, samples: int) -> None:
    """Tells every layer with a prior how many samples the training set has."""
    for module in model.modules():
        if isinstance(module, PriorPenalty):
            module.training_samples = samples
