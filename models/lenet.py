"""LeNet-5.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998, section II.B, in
its modern form. The layers keep the paper's names and sizes; what differs:

- the second convolution, C3, sees all six maps; in the paper's Table I most of its maps see
  some of them (1,516 parameters against 2,416);
- pooling learns nothing; the paper's subsampling scales and shifts each map's averages;
- activations are rectifiers and pooling takes the maximum, unless the options bring back the
  paper's tanh (unscaled here) and averages;
- a linear layer gives logits; the paper's distances to drawn digits learn nothing.

So ten classes of grey images take 61,706 parameters, where the paper's text counts 60,000. The
paper centres 28-pixel digits in 32 pixels; here C1 pads them by two. C5 takes whatever S4 leaves
of the image: 5×5 pixels at 28, 6×6 at 32.

Axes: N batch, C channels, H height, W width, F features.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from .base import Head, ZooModel, check_rates
from .layers.chain import chain, check_side
from .names import choose
from .registry import Published, register
from .stages import Stage

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}
_POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "average": nn.AvgPool2d}


class LeNet5(ZooModel):
    """The network: convolutions `c1` and `c3`, linear layers `c5`, `f6` and `output`.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input.
        image_size: side, or (height, width), of the input in pixels, at least 12; it fixes the
            width of `c5`.
        activation: `relu` or `tanh`.
        pool: `max` or `average`.
        dropout: rate before `output`; the paper has none.
    """

    head_name = "output"
    stem_name = "c1"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int | tuple[int, int],
        activation: str = "relu",
        pool: str = "max",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_classes, in_channels, image_size)
        check_rates(dropout=dropout)
        check_side("lenet5", self.image_size, 12, "resize or pad the images")
        self.activation = choose("activation", activation, _ACTIVATIONS)()
        self.pool = choose("pool", pool, _POOLS)(2)
        height, width = ((side // 2 - 4) // 2 for side in self.image_size)
        self.c1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.c3 = nn.Conv2d(6, 16, 5)
        self.c5 = nn.Linear(16 * height * width, 120)
        self.f6 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(84, num_classes)
        for layer in (self.c1, self.c3, self.c5, self.f6):
            _init(layer, activation)
        self.init_head(self.output)

    def stages(self) -> list[Stage]:
        """Named ``stem`` (C1, S2), ``conv.3`` (C3, S4), ``fc.5``, ``fc.6`` and ``head``."""
        act = self.activation
        return [
            Stage("stem", partial(chain, (self.c1, act, self.pool)), (self.c1,)),
            Stage("conv.3", partial(chain, (self.c3, act, self.pool)), (self.c3,)),
            Stage("fc.5", self._flatten, (self.c5,)),
            Stage("fc.6", partial(chain, (self.f6, act)), (self.f6,)),
            Stage("head", partial(chain, (self.dropout, self.output)), (self.output,)),
        ]

    def _flatten(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.activation(self.c5(x_NCHW.flatten(1)))  # type: ignore[no-any-return]

    def init_head(self, layer: Head) -> None:
        """Initialises the output layer: small, so that fresh logits are."""
        nn.init.normal_(layer.weight, std=0.01)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)


def _init(layer: nn.Conv2d | nn.Linear, activation: str) -> None:
    """He et al., 2015: normal, with the gain of what follows."""
    nn.init.kaiming_normal_(layer.weight, nonlinearity=activation)  # type: ignore[arg-type]
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


register("lenet5", LeNet5, Published("LeCun et al., 1998", 146_156, "", "60,000 (10 classes)", 28))
