"""Members in the channels of one network, operation by operation, against the members."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.serve.executors.channels import UnstackableError, side_by_side
from orchestrator.serve.executors.graph import export

CHANNELS, PLACES, CLASSES = 4, 6, 3


class Net(nn.Module):
    """Two convolutions, what a case puts between them, and a linear layer."""

    def __init__(self, middle: Callable[[Net, Tensor], Tensor], wide: int = 4) -> None:
        super().__init__()
        self._middle = middle
        self.first = nn.Conv2d(CHANNELS, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(wide, 6, 3, stride=2, bias=False)
        self.squeeze, self.excite = nn.Linear(4, 2), nn.Linear(2, 4)
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y = self.second(self._middle(self, self.first(x_BCHW)))
        logits: Tensor = self.last(y.mean((2, 3)))
        return logits


def squeezed(net: Net, y: Tensor) -> Tensor:
    gate = net.excite(F.relu(net.squeeze(y.mean((2, 3)))))
    return y * gate.sigmoid()[:, :, None, None]


STACKED: dict[str, tuple[Callable[[Net, Tensor], Tensor], int]] = {
    "nothing": (lambda net, y: y, 4),
    "activation": (lambda net, y: F.hardtanh(F.silu(y), 0.0, 0.4), 4),
    "sum with a number": (lambda net, y: 0.5 * y + 1 + y.tanh(), 4),
    "norm that is not folded": (lambda net, y: net.norm(y.relu()), 4),
    "pooling": (lambda net, y: F.max_pool2d(y, 3, 1, 1) + F.avg_pool2d(y, 3, 1, 1), 4),
    "joined channels": (lambda net, y: torch.cat([y, y.relu(), 2 * y], 1), 12),
    "squeeze and excite": (squeezed, 4),
    "dropout": (lambda net, y: F.dropout(y, 0.5, net.training), 4),
    "fewer rows": (lambda net, y: y[:, :, 1:], 4),
}
UNSTACKED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "softmax of channels": lambda net, y: y.softmax(1),
    "mean of channels": lambda net, y: y - y.mean(1, keepdim=True),
    "one channel for all": lambda net, y: y * y.amax(1, keepdim=True),
    "channels left out": lambda net, y: torch.cat([y[:, :2], y[:, :2]], 1),
    "places joined": lambda net, y: torch.cat([y, y], 2),
    "a weight of its own": lambda net, y: y * net.squeeze.bias[0],
    "mixed channels": lambda net, y: y.flip(1),
}


def members(middle: Callable[[Net, Tensor], Tensor], wide: int) -> list[Net]:
    torch.manual_seed(0)
    made = [Net(middle, wide) for _ in range(3)]
    for net in made:
        net.norm.running_mean.uniform_(-1, 1)
        net.norm.running_var.uniform_(0.5, 2)
    return [net.eval() for net in made]


@pytest.mark.parametrize("same_inputs", [True, False])
@pytest.mark.parametrize("case", STACKED)
@torch.no_grad()
def test_each_member_keeps_to_its_channels(case, same_inputs):
    nets = members(*STACKED[case])
    xs = [torch.randn(5, CHANNELS, PLACES, PLACES) for _ in nets]
    xs = [xs[0]] * 3 if same_inputs else xs
    stack = side_by_side(export(nets[0], xs[0]), nets, same_inputs=same_inputs)
    for size in (5, 1):
        together = [x[:size] for x in xs]
        found = stack(together[0] if same_inputs else torch.cat(together, 1))
        expected = [net(x) for net, x in zip(nets, together, strict=True)]
        assert torch.allclose(found, torch.cat(expected, 1), atol=1e-6)
        assert not torch.allclose(expected[0], expected[1], atol=1e-2)


@pytest.mark.parametrize("case", UNSTACKED)
def test_what_does_not_is_refused(case):
    nets = members(UNSTACKED[case], 4)
    graph = export(nets[0], torch.randn(5, CHANNELS, PLACES, PLACES))
    with pytest.raises(UnstackableError):
        side_by_side(graph, nets, same_inputs=True)


@torch.no_grad()
def test_a_network_without_convolutions():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3)) for _ in "ab"]
    x = torch.randn(4, 3, 2, 2)
    stack = side_by_side(export(nets[0], x), nets, same_inputs=True)
    assert torch.allclose(stack(x), torch.cat([net(x) for net in nets], 1), atol=1e-6)
