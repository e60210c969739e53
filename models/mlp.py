"""A multi-layer perceptron: an image as one row of numbers, and layers that see all of them.

Our own, the baseline that says how much an architecture gains. Rumelhart et al., "Learning
representations by back-propagating errors", 1986; with rectifiers, the initialisation of He et
al., 2015, equation 10, and dropout after each hidden layer (Srivastava et al., 2014).

Axes: N batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import nn

from .base import ZooModel, check_rates
from .registry import register
from .stages import Stage


class MLP(ZooModel):
    """The network: `hidden` layers and the linear layer `fc`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels. It fixes the first layer's
            width: images of another size do not fit.
        hidden: units of each hidden layer; none at all gives logistic regression.
        dropout: rate after each hidden layer.
    """

    head_name = "fc"
    stem_name = None

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        hidden: Sequence[int] = (512, 256),
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_rates(dropout=dropout)
        if not all(isinstance(units, int) and units >= 1 for units in hidden):
            raise ValueError(
                f"hidden must be whole numbers >= 1, but got {list(hidden)}; "
                "give the units of each layer, such as [512, 256]"
            )
        height, width = self.image_size
        sizes = [in_channels * height * width, *hidden]
        self.hidden = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.ReLU(inplace=True), nn.Dropout(dropout))
                for a, b in pairwise(sizes)
            )
        )
        self.fc = nn.Linear(sizes[-1], num_classes)
        for module in self.hidden.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def stages(self) -> list[Stage]:
        """Named ``stem``, which makes [N, F] of [N, C, H, W], ``hidden.0`` … and ``head``."""
        layers = [
            Stage(f"hidden.{number}", layer, (layer,))
            for number, layer in enumerate(self.hidden.children())
        ]
        stem = Stage("stem", partial(torch.flatten, start_dim=1), ())
        return [stem, *layers, Stage("head", self.fc, (self.fc,))]


register("mlp", MLP)
