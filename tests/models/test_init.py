"""Initialisers: the variances that their papers derive, and what they leave alone."""

import math

import pytest
import torch
from torch import nn

from orchestrator import models
from orchestrator.models.layers.init import INITIALISERS, initialise, zero_gamma
from orchestrator.models.layers.norms import convolution

FAN_IN, FAN_OUT = 32 * 9, 48 * 9
DEVIATIONS = {
    "normal": 0.02,
    "xavier_uniform": math.sqrt(2 / (FAN_IN + FAN_OUT)),
    "xavier_normal": math.sqrt(2 / (FAN_IN + FAN_OUT)),
    "kaiming_uniform": math.sqrt(2 / FAN_IN),
    "kaiming_normal": math.sqrt(2 / FAN_IN),
    # A normal variable within two deviations has 0.8796 of its deviation.
    "trunc_normal": 0.02 * 0.87962566,
}


def conv() -> nn.Conv2d:
    return nn.Conv2d(32, 48, 3)


def check_spread(weight: torch.Tensor, deviation: float) -> None:
    n = weight.numel()
    # Five standard errors; that of a deviation is at most deviation / sqrt(2 n) here.
    assert weight.std().item() == pytest.approx(deviation, rel=5 * (2 * n) ** -0.5)
    assert abs(weight.mean().item()) < 5 * deviation * n**-0.5


@pytest.mark.parametrize("name", DEVIATIONS)
@pytest.mark.parametrize("make", [conv, lambda: nn.ConvTranspose2d(32, 48, 3)])
def test_deviations_are_the_papers(name, make):
    torch.manual_seed(0)
    layer = make()
    initialise(layer, name)
    check_spread(layer.weight, DEVIATIONS[name])
    assert not layer.bias.any()
    if name.endswith("uniform"):
        bound = math.sqrt(3) * DEVIATIONS[name]
        assert 0.99 * bound < layer.weight.abs().max() <= bound
    if name == "trunc_normal":
        assert layer.weight.abs().max() <= 0.04


def test_fan_gain_and_deviation_are_options():
    torch.manual_seed(0)
    layer = conv()
    initialise(layer, "kaiming_normal", mode="fan_out", nonlinearity="linear")
    check_spread(layer.weight, math.sqrt(1 / FAN_OUT))
    initialise(layer, "normal", std=0.5)
    check_spread(layer.weight, 0.5)


def test_zero_is_zero_everywhere_and_all_names_work():
    assert set(INITIALISERS) == {*DEVIATIONS, "zero"}
    layer = conv()
    initialise(layer, "zero")
    assert not any(parameter.any() for parameter in layer.parameters())


def test_depth_keeps_the_variance_with_kaiming_and_relu():
    torch.manual_seed(0)
    layers = [part for _ in range(20) for part in (nn.Linear(256, 256), nn.ReLU())]
    deep = nn.Sequential(*layers)
    initialise(deep, "kaiming_normal")
    x = torch.randn(256, 256)
    assert 0.3 < (deep(x).square().mean() / x.square().mean()).item() < 3.0
    initialise(deep, "normal")
    assert deep(x).square().mean() < 1e-8


def test_norms_and_embeddings_keep_what_they_have():
    model = nn.ModuleList([nn.BatchNorm2d(4), nn.Embedding(3, 4), nn.LayerNorm(4), nn.PReLU(4)])
    for parameter in model.parameters():
        nn.init.uniform_(parameter)
    before = [parameter.clone() for parameter in model.parameters()]
    initialise(model, "zero")
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("make", [nn.LSTM, nn.GRUCell])
def test_recurrent_layers_are_drawn_matrix_by_matrix(make):
    torch.manual_seed(0)
    layer = make(64, 96)
    initialise(layer, "xavier_normal")
    gates = 4 if make is nn.LSTM else 3
    for name, parameter in layer.named_parameters():
        if name.startswith("bias"):
            assert not parameter.any()
        else:
            check_spread(parameter, math.sqrt(2 / (gates * 96 + parameter.shape[1])))


def test_weights_in_a_parametrisation_are_set_through_it():
    torch.manual_seed(0)
    layer = convolution("weight_norm", 32, 48, 3)
    initialise(layer, "kaiming_normal")
    check_spread(layer.weight, DEVIATIONS["kaiming_normal"])
    length = layer.parametrizations.weight.original0.flatten()
    torch.testing.assert_close(length, layer.weight.flatten(1).norm(dim=1))


def test_the_seed_decides_and_gradients_are_kept_on():
    layer = conv()
    torch.manual_seed(3)
    initialise(layer, "trunc_normal")
    first = layer.weight.clone()
    torch.manual_seed(3)
    initialise(layer, "trunc_normal")
    assert torch.equal(layer.weight, first)
    assert layer.weight.requires_grad
    assert layer.weight.is_leaf


def test_zero_gamma_makes_residual_blocks_the_identity():
    model = models.create("resnet18", num_classes=2, image_size=32, width=0.125, zero_init=False)
    x = torch.rand(2, 8, 4, 4)
    assert not torch.equal(model.layer1[0](x), x)
    zero_gamma(model)
    assert torch.equal(model.layer1[0](x), x)
    zeros = [name for name, p in model.named_parameters() if p.ndim == 1 and not p.any()]
    assert len([name for name in zeros if name.endswith("bn2.weight")]) == 8
    assert not [name for name in zeros if name.endswith("bn1.weight")]


def test_bad_use_is_explained():
    with pytest.raises(ValueError, match=r"unknown initialiser 'xavier'; did you mean 'xavier_"):
        initialise(conv(), "xavier")
    with pytest.raises(ValueError, match=r"[Mm]ode"):
        initialise(conv(), "kaiming_normal", mode="fan")
    with pytest.raises(
        ValueError, match=r"zero gammas need residual blocks, but the model has none"
    ):
        zero_gamma(conv())
