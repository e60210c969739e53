"""Graphs of real architectures: folded, with other weights, for any batch, and stacked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from orchestrator.serve.executors.graph import export
from orchestrator.serve.executors.packed import pack
from orchestrator.serve.executors.stacked import (
    ChannelsForward,
    Stack,
    VmapForward,
    stacked_forward,
)
from tests.zoo.cases import FIRST
from tests.zoo.small import IMAGES, images, settle, slim

ALWAYS = [
    "densenet121",
    "efficientnet",
    "mobilenet_v3_small",
    "resnet18",
    "swin_tiny",
    "vit_tiny_patch16",
]
NOT_EXPORTED = ["cvt_13"]
"""What torch's exporter specialises to one number of samples."""
MIXING = ["convnet", "deit_tiny_distilled_patch16", "pvt_v2_b0", "shufflenet_v2_x0_5"]
MIXING += ["swin_tiny", "vit_tiny_patch16"]
"""What does not keep to its channels, and is stacked by `vmap`."""
REST = [n for n in FIRST if n in IMAGES and n not in (*ALWAYS, *NOT_EXPORTED)]
SETTLED = 2e-6
"""Rounding of fp32 in networks whose batch norms divide by the deviation of four images: their
probabilities differ more than trained ones'."""


CPU = torch.device("cpu")


def member(name: str, seed: int) -> tuple[nn.Module, Tensor]:
    """A small network with weights of its own, and four images."""
    network, x = slim(name), images(name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1:
                parameter += 0.2 * parameter.std() * torch.randn_like(parameter)
    settle(network, x)
    return network, x


@pytest.mark.parametrize(
    "name", [*ALWAYS, *[pytest.param(name, marks=pytest.mark.slow) for name in REST]]
)
@torch.no_grad()
def test_a_graph_and_a_stack_give_the_networks_probabilities(name):
    (a, x), (b, _) = member(name, 1), member(name, 2)
    graph = export(a, x)
    many = torch.cat([x, x.flip(3), x[:1]])
    expected = [network(many).softmax(1) for network in (a, b)]
    assert (expected[0] - expected[1]).abs().max() > 100 * SETTLED
    rounding = max(
        SETTLED,
        # What fp32 itself loses in this network: against fp64.
        *(
            4 * (copy.deepcopy(n).double()(many.double()).softmax(1) - p).abs().max().item()
            for n, p in zip((a, b), expected, strict=True)
        ),
    )
    for network, rows in zip((a, b), expected, strict=True):
        found = graph.with_weights(network)
        for batch in (slice(None), slice(0, 1)):
            assert (found(many[batch]).softmax(1) - rows[batch]).abs().max() <= rounding
    stack = stacked_forward(Stack(graph, [a, b], CPU, "fp32", same_inputs=True), x)
    assert isinstance(stack, VmapForward if name in MIXING else ChannelsForward)
    stacked = stack([many, many]).softmax(2)
    assert (stacked - torch.stack(expected)).abs().max() <= rounding
    last = torch.channels_last
    packed = pack(graph.with_weights(b).to(memory_format=last), x.to(memory_format=last))
    for batch in (many, many[:1]):
        found = packed(batch.to(memory_format=last)).softmax(1)
        assert (found - expected[1][: len(batch)]).abs().max() <= rounding


class Small(nn.Module):
    """Norms behind convolutions with and without bias, before one, and behind what two use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.a_norm = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.b, self.b_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False)
        self.first = nn.BatchNorm2d(4)
        self.c, self.c_norm = nn.Conv2d(4, 3, 1, groups=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b_norm(self.b(self.a_norm(self.a(x))))
        x = self.c(self.first(x))
        return (self.c_norm(x) + x).mean((2, 3))


@torch.no_grad()
def test_norms_are_folded_where_a_convolutions_result_is_used_by_them_alone():
    torch.manual_seed(0)
    network, x = Small(), torch.randn(5, 2, 6, 6)
    for _ in range(4):
        network(3 + 2 * torch.randn(8, 2, 6, 6))
    network.eval()
    graph = export(network, x)
    left = [node for node in graph.module.graph.nodes if "batch_norm" in str(node.target)]
    assert (len(graph.folds), len(left)) == (2, 2)
    scale = network.a_norm.weight / (network.a_norm.running_var + network.a_norm.eps).sqrt()
    folded = graph.with_weights(network).folded0_weight
    assert torch.allclose(folded, network.a.weight * scale[:, None, None, None], atol=1e-7)
    assert torch.allclose(graph.with_weights(network)(x), network(x), atol=1e-5)


@pytest.mark.parametrize("make", [stacked_forward, lambda stack, x: VmapForward(stack)])
@torch.no_grad()
def test_members_of_a_stack_may_read_different_numbers(make):
    (a, x), (b, _) = member("resnet18", 1), member("resnet18", 2)
    stack = make(Stack(export(a, x), [a, b], CPU, "fp32", same_inputs=False), x)
    found = stack([x, 2 * x])
    assert torch.allclose(found[0], a(x), atol=1e-4)
    assert torch.allclose(found[1], b(2 * x), atol=1e-4)
    assert not torch.allclose(found[1], b(x), atol=1e-2)
