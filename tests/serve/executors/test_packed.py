"""Graphs packed for oneDNN: what goes with a convolution, what does not, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.serve.executors.graph import export
from orchestrator.serve.executors.packed import pack

LAST = torch.channels_last


class Net(nn.Module):
    """A convolution, what a case does with its result and its input, and a mean over places."""

    def __init__(self, tail: Callable[[Tensor, Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self._tail = tail
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        with torch.no_grad():
            self.conv.weight.mul_(4)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x = self.stem(x_BCHW)
        return self._tail(self.conv(x), x).mean((2, 3))


def added_to(y: Tensor, x: Tensor) -> Tensor:
    x += y
    return x.relu_()


def read_later(y: Tensor, x: Tensor) -> Tensor:
    x += y
    return x * y + y.relu()


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    # The second number: operations behind the two convolutions, the mean's pooling apart.
    "nothing": (lambda y, x: y, 0),
    "relu": (lambda y, x: y.relu_(), 0),
    "silu": (lambda y, x: F.silu(y), 0),
    "hardswish": (lambda y, x: F.hardswish(y), 0),
    "sigmoid": (lambda y, x: y.sigmoid(), 0),
    "relu6": (lambda y, x: F.relu6(y), 0),
    "hardtanh": (lambda y, x: F.hardtanh(y), 0),
    "sum": (lambda y, x: y + x, 1),
    "sum and relu": (lambda y, x: (x + y).relu(), 2),
    "in-place sum": (added_to, 2),
    "itself twice": (lambda y, x: y + y, 1),
    "used twice": (lambda y, x: y.relu() - y, 2),
    "read later": (read_later, 4),
    "another activation": (lambda y, x: y.tanh(), 1),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_what_follows_a_convolution(case):
    torch.manual_seed(0)
    tail, left = CASES[case]
    net, x = Net(tail).eval(), torch.randn(5, 2, 6, 7)
    graph = export(net, x)
    packed = pack(graph.with_weights(net), x.to(memory_format=LAST))
    for size in (5, 1):
        assert torch.allclose(packed(x[:size].to(memory_format=LAST)), net(x[:size]), atol=2e-6)
    targets = [str(node.target) for node in packed.graph.nodes if node.op == "call_function"]
    assert sum("_convolution_pointwise" in name for name in targets) == 2
    assert not any("conv2d" in name or "mean" in name for name in targets)
    assert len(targets) == 2 + 2 + left  # the mean is a pooling and a change of shape


@pytest.mark.parametrize("groups", [1, 2])
@torch.no_grad()
def test_half_the_bits_are_near(groups):
    torch.manual_seed(0)
    net, x = Net(CASES["sum and relu"][0], groups).eval(), torch.randn(5, 2, 6, 7)
    module = export(net, x).with_weights(net).to(torch.bfloat16)
    half = x.to(torch.bfloat16, memory_format=LAST)
    found, expected = pack(module, half)(half), net(x)
    assert found.dtype == torch.bfloat16
    # 8 bits of a number are kept: relative steps of 2^-8.
    assert (found.float() - expected).abs().max() <= 2**-6 * expected.abs().max()


@torch.no_grad()
def test_kernels_that_are_computed_are_left_alone():
    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 2, 3, 3))

        def forward(self, x_BCHW: Tensor) -> Tensor:
            kernel = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x_BCHW, kernel).mean((2, 3))

    torch.manual_seed(0)
    net, x = Standardised().eval(), torch.randn(3, 2, 5, 5)
    packed = pack(export(net, x).with_weights(net), x.to(memory_format=LAST))
    assert torch.allclose(packed(x), net(x), atol=1e-6)
