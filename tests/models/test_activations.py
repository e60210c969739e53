"""Activations by name, against their formulas."""

import pytest
import torch
from torch import nn

from orchestrator.models.layers.activations import ACTIVATIONS, ThresholdedLinear, activation

X = torch.linspace(-4, 4, 48, dtype=torch.double).reshape(1, 3, 4, 4)
FORMULAS = {
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "tlu": lambda x: x.clamp(min=0),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "selu": lambda x: 1.0507009873554805 * torch.where(x > 0, x, 1.6732632423543772 * x.expm1()),
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "tanh": lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
    "silu": lambda x: x / (1 + (-x).exp()),
    "mish": lambda x: x * torch.tanh((1 + x.exp()).log()),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: (
        x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    ),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda x: x.clamp(-1, 1),
    "softplus": lambda x: (1 + x.exp()).log(),
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_each_is_its_formula(name, inplace):
    layer = activation(name, channels=3, inplace=inplace).double()
    torch.testing.assert_close(layer(X.clone()), FORMULAS[name](X))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_overwriting_leaves_the_gradient_as_it_is(name):
    gradients = []
    for inplace in (False, True):
        x = X.clone().requires_grad_()
        activation(name, channels=3, inplace=inplace).double()(x * 1.0).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["silu", "mish", "hardswish"])
def test_what_a_gradient_needs_is_not_overwritten(name):
    layer, x = activation(name, inplace=True), X.clone().requires_grad_() * 1.0
    assert layer(x).data_ptr() != x.data_ptr()
    torch.testing.assert_close(x, X, rtol=0, atol=0)
    with torch.no_grad():
        x = x.detach()
        assert layer(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("name", ["prelu", "tlu"])
def test_what_is_learned_is_learned_per_channel(name):
    layer = activation(name, channels=3).double()
    (parameter,) = layer.parameters()
    with torch.no_grad():
        parameter.copy_(torch.tensor([0.5, -0.5, 0.1]))
    column = parameter.detach()[:, None, None]
    expected = torch.where(X > 0, X, column * X) if name == "prelu" else torch.maximum(X, column)
    torch.testing.assert_close(layer(X), expected)
    assert torch.autograd.gradcheck(layer, ((X + 0.01).requires_grad_(),), atol=1e-6)
    layer(X).sum().backward()
    wanted = X.clamp(max=0) if name == "prelu" else (column > X).double()
    torch.testing.assert_close(parameter.grad, wanted.sum((0, 2, 3)))


def test_channels_are_needed_where_nothing_can_stand_for_them():
    assert activation("prelu").weight.shape == (1,)
    with pytest.raises(ValueError, match=r"tlu learns a threshold a channel; say how many"):
        activation("tlu")
    assert isinstance(activation("tlu", 2), ThresholdedLinear)


def test_each_call_makes_a_fresh_one():
    assert activation("prelu", 3).weight is not activation("prelu", 3).weight
    assert isinstance(activation("relu"), nn.ReLU)
    assert activation("relu", inplace=True).inplace
    assert not activation("relu").inplace


def test_a_wrong_name_is_answered_with_the_right_ones():
    with pytest.raises(
        ValueError, match=r"unknown activation 'leakyrelu'; did you mean 'leaky_relu'"
    ):
        activation("leakyrelu")
    with pytest.raises(ValueError, match=r"unknown activation 'xyz'; choose from: relu, relu6, "):
        activation("xyz")
