"""Norms and kernels against their formulas, torch's functions and timm's modules."""

import copy

import pytest
import torch
from torch import nn

from orchestrator.models.layers.norms import (
    NORMS,
    FilterResponseNorm,
    LayerNorm2d,
    RMSNorm2d,
    StandardisedConv2d,
    convolution,
    groups_for,
    norm,
    standardise,
)

AXES = {"batch": (0, 2, 3), "layer": (1,), "instance": (2, 3)}


def images(n=4, c=6, h=5, w=3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(n, c, h, w, generator=generator, dtype=torch.double) + 2


def spread(layer: nn.Module) -> nn.Module:
    """Gives a layer's parameters values that its formula must use."""
    for parameter in layer.double().parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return layer


def column(parameter: torch.Tensor) -> torch.Tensor:
    return parameter[None, :, None, None]


@pytest.mark.parametrize("name", AXES)
def test_mean_and_variance_over_its_axes_are_taken_away(name):
    layer, x = spread(norm(name, 6)), images()
    variance, mean = torch.var_mean(x, AXES[name], correction=0, keepdim=True)
    eps = 1e-5
    expected = (x - mean) / (variance + eps).sqrt() * column(layer.weight) + column(layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_group_norm_is_over_the_groups_pixels_and_channels():
    layer, x = spread(norm("group", 6)), images()
    assert layer.num_groups == 3
    grouped = x.reshape(4, 3, 2, 5, 3)
    variance, mean = torch.var_mean(grouped, (2, 3, 4), correction=0, keepdim=True)
    expected = ((grouped - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)
    expected = expected * column(layer.weight) + column(layer.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (3, 1), (7, 1), (8, 4), (24, 12), (64, 32), (96, 32)]
)
def test_groups_divide_and_hold_two_channels(channels, groups):
    assert groups_for(channels) == groups
    assert channels % groups == 0


def test_rms_norm_is_its_formula():
    layer, x = spread(RMSNorm2d(6, eps=1e-6)), images()
    root = (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(layer(x), x / root * column(layer.weight))


@pytest.mark.parametrize("learned", [False, True])
def test_filter_response_norm_is_its_formula(learned):
    layer, x = spread(FilterResponseNorm(6, eps=1e-3, learned_eps=learned)), images()
    if learned:
        nn.init.constant_(layer.learned_eps, -0.3)
    eps = 0.301 if learned else 1e-3
    nu = x.square().mean((2, 3), keepdim=True)
    expected = column(layer.weight) * x / (nu + eps).sqrt() + column(layer.bias)
    torch.testing.assert_close(layer(x), expected)


def test_filter_response_norm_is_timms(timm):
    from timm.layers import FilterResponseNormAct2d

    theirs = FilterResponseNormAct2d(6, apply_act=False, rms=True, eps=1e-6).double()
    ours = spread(norm("filter_response", 6))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()))


@pytest.mark.parametrize("name", NORMS)
def test_gradients_are_those_of_the_formula(name):
    layer, x = spread(norm(name, 4)), images(2, 4, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-6)


@pytest.mark.parametrize("name", ["layer", "rms", "filter_response"])
def test_one_image_is_normalised_apart_from_the_others(name):
    layer, x = spread(norm(name, 6)), images()
    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


@pytest.mark.parametrize("layer", [LayerNorm2d(6), RMSNorm2d(6)])
def test_channels_last_images_stay_so(layer):
    x = images().float().contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_a_wrong_norm_is_answered_with_the_right_ones():
    with pytest.raises(ValueError, match=r"unknown norm 'bach'; did you mean 'batch'\?"):
        norm("bach", 4)
    with pytest.raises(ValueError, match=r"unknown norm 'zzz'; choose from: batch, layer, group"):
        norm("zzz", 4)


# --- kernels -----------------------------------------------------------------------------------


def test_standardised_kernels_have_mean_zero_and_variance_one():
    weight = 5 * torch.randn(7, 4, 3, 3, dtype=torch.double) + 1
    variance, mean = torch.var_mean(standardise(weight, 0.0), (1, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean))
    torch.testing.assert_close(variance, torch.ones_like(variance))


def test_a_standardised_convolution_convolves_with_them():
    conv, x = StandardisedConv2d(6, 4, 3, padding=2, dilation=2, groups=2).double(), images()
    weight = (conv.weight - conv.weight.mean((1, 2, 3), keepdim=True)) / (
        conv.weight.var((1, 2, 3), correction=0, keepdim=True) + 1e-5
    ).sqrt()
    expected = nn.functional.conv2d(x, weight, conv.bias, padding=2, dilation=2, groups=2)
    torch.testing.assert_close(conv(x), expected)


def test_a_standardised_convolution_is_timms(timm):
    from timm.layers import StdConv2d

    theirs = StdConv2d(6, 4, 3, padding=1, eps=1e-5).double()
    ours = convolution("standardised", 6, 4, 3, padding=1, bias=False).double()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(images()), theirs(images()))


def test_weight_norm_learns_length_and_direction_apart():
    conv, x = convolution("weight_norm", 6, 4, 3, bias=False).double(), images()
    length = conv.parametrizations.weight.original0
    direction = conv.parametrizations.weight.original1
    norms = direction.flatten(1).norm(dim=1)[:, None, None, None]
    before = conv(x)
    torch.testing.assert_close(before, nn.functional.conv2d(x, length * direction / norms))
    with torch.no_grad():
        direction.mul_(7.0)
    torch.testing.assert_close(conv(x), before)
    with torch.no_grad():
        length.mul_(2.0)
    torch.testing.assert_close(conv(x), 2 * before)
    torch.testing.assert_close(copy.deepcopy(conv)(x), 2 * before)


def test_wrong_kernels_are_answered_with_the_right_ones():
    with pytest.raises(
        ValueError, match=r"unknown kind of kernels 'standardized'; did you mean 's"
    ):
        convolution("standardized", 1, 1, 1)
