"""Temporal convolutional networks.

Bai et al., "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
Modeling", 2018: residual blocks of two causal convolutions each, whose dilation doubles from block
to block, with weight normalisation (Salimans and Kingma, 2016). Names of a block's layers are those
of the authors' code. Their N(0, 0.01²) for the convolutions is undone there by the normalisation,
which draws the weight from direction and norm anew; so here they start as torch's do.

Axes: N batch, T time (tokens), D features, O and I outputs and inputs of a convolution, K its
kernel.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from .base import at_least, check_rates
from .registry import register
from .sequence import PAD, SequenceModel, last_real
from .stages import Stage


class CausalConv(nn.Module):
    """A convolution over time that sees no later token; its weight is `weight_g` · v / ‖v‖.

    NDT in, NOT out.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.dilation, self.past = dilation, (kernel - 1) * dilation
        start = nn.Conv1d(inputs, outputs, kernel)
        self.bias = start.bias
        self.weight_v = start.weight
        with torch.no_grad():
            self.weight_g = nn.Parameter(_norm(start.weight))

    def forward(self, x_NDT: torch.Tensor) -> torch.Tensor:
        """Returns as many time steps as come in."""
        weight_OIK = self.weight_v * (self.weight_g / _norm(self.weight_v))
        return F.conv1d(F.pad(x_NDT, (self.past, 0)), weight_OIK, self.bias, dilation=self.dilation)


def _norm(weight_OIK: torch.Tensor) -> torch.Tensor:
    return weight_OIK.square().sum((1, 2), keepdim=True).sqrt()


class TemporalBlock(nn.Module):
    """Two causal convolutions of one dilation, and the shortcut past them. NDT in, NOT out."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, dilation: int, dropout: float
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv(inputs, outputs, kernel, dilation)
        self.conv2 = CausalConv(outputs, outputs, kernel, dilation)
        self.dropout = nn.Dropout(dropout)
        self.downsample = nn.Identity() if inputs == outputs else nn.Conv1d(inputs, outputs, 1)
        if isinstance(self.downsample, nn.Conv1d):
            nn.init.normal_(self.downsample.weight, std=0.01)

    def forward(self, x_NDT: torch.Tensor) -> torch.Tensor:
        """Returns the rectified sum of shortcut and branch."""
        y_NOT = self.dropout(F.relu(self.conv1(x_NDT)))
        y_NOT = self.dropout(F.relu(self.conv2(y_NOT)))
        return F.relu(y_NOT + self.downsample(x_NDT))


class TCN(SequenceModel):
    """The network: embedding, blocks, the last real token's features, and the layer `head`.

    Args:
        num_classes: length of the logits.
        vocabulary: how many tokens there are.
        length: tokens of a sequence.
        per_token: logits for each token, not for the whole sequence.
        embedding: features of a token.
        channels: features of every block.
        levels: blocks; their dilations are 1, 2, 4, …
        kernel: tokens that a convolution reads.
        dropout: rate behind the embedding and each convolution.

    Attributes:
        receptive_field: tokens that one output depends on: 1 + 2 (kernel − 1)(2^levels − 1).
    """

    def __init__(
        self,
        *,
        num_classes: int,
        vocabulary: int,
        length: int | tuple[int, ...],
        per_token: bool = False,
        embedding: int = 128,
        channels: int = 128,
        levels: int = 4,
        kernel: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(num_classes, vocabulary, length, per_token)
        check_rates(dropout=dropout)
        sizes = {"embedding": embedding, "channels": channels, "levels": levels}
        for name, value in sizes.items():
            at_least(name, value, 1, "a size of the network")
        at_least("kernel", kernel, 2, "tokens that a convolution reads")
        self.receptive_field = 1 + 2 * (kernel - 1) * (2**levels - 1)
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PAD)
        self.dropout = nn.Dropout(dropout)
        self.network = nn.ModuleList(
            TemporalBlock(
                embedding if level == 0 else channels, channels, kernel, 2**level, dropout
            )
            for level in range(levels)
        )
        self.head = nn.Linear(channels, num_classes)

    def stages(self) -> list[Stage]:
        """Named ``stem``, ``network.0`` …, ``pool`` and ``head``."""
        blocks = [
            Stage(f"network.{level}", partial(_through, block), (block,))
            for level, block in enumerate(self.network)
        ]
        stem = Stage("stem", self._stem, (self.embedding,))
        pool = Stage("pool", self._pool, ())
        return [stem, *blocks, pool, Stage("head", self.head, (self.head,))]

    def _stem(self, tokens_NT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.dropout(self.embedding(tokens_NT)).transpose(1, 2), tokens_NT

    def _pool(self, state: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x_NDT, tokens_NT = state
        x_NTD = x_NDT.transpose(1, 2)
        return x_NTD if self.per_token else last_real(x_NTD, tokens_NT)


def _through(
    block: nn.Module, state: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    x_NDT, tokens_NT = state
    return block(x_NDT), tokens_NT


register("tcn", TCN)
