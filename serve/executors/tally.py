"""The weighted answer of members: of all, or of those asked so far, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def combine(logits_MBK: Tensor, weights: Sequence[float], what: str) -> Tensor:
    """The members' answers together: float32[B, classes].

    Args:
        logits_MBK: of M members.
        weights: one a member; scaled to sum to 1.
        what: is averaged, `logits` or, whatever else it says, probabilities.
    """
    if len(weights) == 1:
        return logits_MBK[0].softmax(1)
    weights_M11 = torch.tensor([weight / sum(weights) for weight in weights]).view(-1, 1, 1)
    if what == "logits":
        return (weights_M11 * logits_MBK).sum(0).softmax(1)
    return (weights_M11 * logits_MBK.softmax(2)).sum(0)


class Tally:
    """Adds up members' answers; samples may have been answered by different members.

    Args:
        samples, classes: of the batch.
        combine: what is averaged, `probabilities` or `logits`.
    """

    def __init__(self, samples: int, classes: int, combine: str) -> None:
        self._logits = combine == "logits"
        self._sum_BK = torch.zeros(samples, classes)
        self._weight_B = torch.zeros(samples)
        self._label_B = torch.full((samples,), -1)
        self._agree_B = torch.ones(samples, dtype=torch.bool)
        self.members_B = torch.zeros(samples, dtype=torch.int64)
        """Members whose answer is in each sample's."""

    def add(self, logits_SK: Tensor, weight: float, samples: Tensor | None = None) -> None:
        """One member's answer.

        Args:
            logits_SK: float32[S, classes].
            weight: the member's.
            samples: int64[S], which samples it answered; None for all.
        """
        rows = slice(None) if samples is None else samples
        values_SK = logits_SK if self._logits else logits_SK.softmax(1)
        self._sum_BK[rows] += weight * values_SK
        self._weight_B[rows] += weight
        labels_S = logits_SK.argmax(1)
        first_S = self.members_B[rows] == 0
        self._agree_B[rows] &= first_S | (self._label_B[rows] == labels_S)
        self._label_B[rows] = labels_S
        self.members_B[rows] += 1

    def probabilities(self) -> Tensor:
        """float32[B, classes]: the mean by the weights of those asked."""
        mean_BK = self._sum_BK / self._weight_B[:, None]
        return mean_BK.softmax(1) if self._logits else mean_BK

    def undecided(self, probability: float) -> Tensor:
        """int64[S]: samples whose members disagree, or whose largest probability is lower."""
        sure_B = self._agree_B & (self.probabilities().amax(1) >= probability)
        return (~sure_B).nonzero()[:, 0]
