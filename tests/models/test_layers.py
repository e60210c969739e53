"""Shared blocks against their formulas."""

import pytest
import torch
from torch import nn

from orchestrator.models.layers.conv import (
    ConvNormAct,
    SqueezeExcite,
    make_divisible,
    spatial_mean,
)
from orchestrator.models.layers.drop_path import DropPath


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, 8), (11, 16), (12, 16), (17.6, 16), (20, 24), (26.4, 24), (352, 352), (35.2, 32)],
)
def test_rounding_to_eights_never_loses_a_tenth(channels, expected):
    assert make_divisible(channels) == expected
    assert expected >= 0.9 * channels


def test_rounding_is_torchvisions(torchvision):
    from torchvision.models._utils import _make_divisible

    for tenth in range(1, 5000):
        assert make_divisible(tenth / 10) == _make_divisible(tenth / 10, 8)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_spatial_mean_is_the_mean_and_so_is_its_gradient(layout):
    x = torch.randn(3, 5, 4, 6, dtype=torch.double).contiguous(memory_format=layout)
    x.requires_grad_()
    weights = torch.randn(3, 5, dtype=torch.double)
    torch.testing.assert_close(spatial_mean(x), x.mean((2, 3)))
    (spatial_mean(x) * weights).sum().backward()
    torch.testing.assert_close(x.grad, (weights[:, :, None, None] / 24).expand_as(x))
    assert x.grad.is_contiguous(memory_format=layout)


def test_an_exported_mean_is_a_mean():
    class Mean(torch.nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return spatial_mean(super().forward(x))

    program = torch.export.export(Mean(2, 3, 1), (torch.randn(2, 2, 4, 4),))
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert called == {torch.ops.aten.conv2d.default, torch.ops.aten.mean.dim}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mean_in_half_precision_survives_a_sum_that_would_not(dtype, layout):
    x = torch.full((2, 3, 32, 32), 256.0, dtype=dtype).contiguous(memory_format=layout)
    assert x[0, 0].double().sum() > torch.finfo(torch.float16).max
    assert torch.equal(spatial_mean(x), torch.full((2, 3), 256.0, dtype=dtype))


def test_squeeze_excite_is_its_formula():
    block = SqueezeExcite(6, 2).double()
    x = torch.randn(2, 6, 3, 3, dtype=torch.double)
    mean = x.mean((2, 3))
    hidden = mean @ block.fc1.weight.flatten(1).T + block.fc1.bias
    hidden = hidden * hidden.sigmoid()
    gate = (hidden @ block.fc2.weight.flatten(1).T + block.fc2.bias).sigmoid()
    torch.testing.assert_close(block(x), x * gate[:, :, None, None])


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (3, 2, 4), (5, 2, 4), (1, 1, 7)])
def test_convolutions_keep_or_halve(kernel, stride, side):
    block = ConvNormAct(2, 4, kernel=kernel, stride=stride, groups=2, activation=None)
    assert block(torch.rand(2, 2, 7, 7)).shape == (2, 4, side, side)
    assert [type(part) for part in block] == [nn.Conv2d, nn.BatchNorm2d]
    assert block[0].bias is None


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = DropPath(0.25)
    out = drop(torch.ones(20_000, 3, 2))
    assert ((out == out[:, :1, :1]).all(dim=2).all(dim=1)).all()
    values = out[:, 0, 0]
    assert torch.unique(values).tolist() == pytest.approx([0.0, 1 / 0.75])
    # Five standard errors of a mean of Bernoulli draws.
    assert (values == 0).float().mean().item() == pytest.approx(0.25, abs=5 * 0.0031)
    assert values.mean().item() == pytest.approx(1.0, abs=5 * 0.0041)


def test_drop_path_is_the_identity_out_of_training():
    x = torch.rand(4, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0)(x) is x
