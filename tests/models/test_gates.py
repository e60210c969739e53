"""Channel and spatial attention against the formulas and timm."""

import pytest
import torch

from orchestrator.models.layers.conv import SqueezeExcite
from orchestrator.models.layers.gates import (
    CBAM,
    GATES,
    ChannelAttention,
    EfficientChannelAttention,
    SpatialAttention,
    eca_kernel,
    gate,
)


def images() -> torch.Tensor:
    return torch.randn(2, 6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)


@pytest.mark.parametrize(
    ("channels", "kernel"),
    [(1, 1), (4, 1), (8, 3), (16, 3), (32, 3), (64, 3), (127, 3), (128, 5), (512, 5), (2048, 7)],
)
def test_eca_looks_as_far_as_its_rule_says(channels, kernel):
    exact = (torch.log2(torch.tensor(float(channels))).item() + 1) / 2
    assert eca_kernel(channels) == kernel
    assert kernel % 2 == 1
    assert abs(kernel - exact) <= 1


@pytest.mark.parametrize("channels", range(2, 600, 7))
def test_eca_looks_as_far_as_the_authors(channels, timm):
    from timm.layers import EcaModule

    assert eca_kernel(channels) == max(3, eca_kernel(channels)) or channels < 8
    if channels >= 8:
        assert EcaModule(channels).conv.kernel_size == (eca_kernel(channels),)


def test_eca_is_its_formula():
    layer, x = EfficientChannelAttention(6, kernel=3).double(), images()
    weight, means = layer.conv.weight.flatten(), x.mean((2, 3))
    padded = torch.cat([torch.zeros(2, 1), means, torch.zeros(2, 1)], 1)
    pre = sum(weight[k] * padded[:, k : k + 6] for k in range(3))
    torch.testing.assert_close(layer(x), x * pre.sigmoid()[:, :, None, None])


def test_eca_is_timms(timm):
    from timm.layers import EcaModule

    theirs, ours = EcaModule(64).double(), gate("eca", 64).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 64, 3, 3, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x))


def test_channel_attention_is_its_formula():
    layer, x = ChannelAttention(6, 4).double(), images()

    def mlp(pooled):
        return (pooled @ layer.fc1.weight.T).clamp(min=0) @ layer.fc2.weight.T

    scale = (mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values)).sigmoid()
    torch.testing.assert_close(layer(x), x * scale[:, :, None, None])


def test_spatial_attention_is_its_formula():
    layer, x = SpatialAttention(3).double(), images()
    pooled = torch.nn.functional.pad(torch.stack([x.mean(1), x.max(1).values], 1), (1, 1, 1, 1))
    pre = torch.zeros(2, 5, 3, dtype=torch.double)
    for i in range(3):
        for j in range(3):
            for plane in range(2):
                pre += layer.conv.weight[0, plane, i, j] * pooled[:, plane, i : i + 5, j : j + 3]
    torch.testing.assert_close(layer(x), x * pre.sigmoid()[:, None])


def test_cbam_is_timms_but_for_the_norm_that_the_paper_has_not(timm):
    from timm.layers.cbam import CbamModule

    theirs = CbamModule(32, rd_ratio=1 / 4, spatial_kernel_size=7).double().eval()
    theirs.spatial.conv.bn = torch.nn.Identity()
    ours = CBAM(32, 8).double()
    renamed = {
        "channel.fc1.weight": ours.channel.fc1.weight[:, :, None, None],
        "channel.fc2.weight": ours.channel.fc2.weight[:, :, None, None],
        "spatial.conv.conv.weight": ours.spatial.conv.weight,
    }
    theirs.load_state_dict(renamed)
    x = torch.randn(2, 32, 9, 9, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x))


def test_cbam_gates_channels_first_then_places():
    layer, x = CBAM(6, 4, kernel=3).double(), images()
    torch.testing.assert_close(layer(x), layer.spatial(layer.channel(x)))
    assert list(dict(layer.named_children())) == ["channel", "spatial"]


@pytest.mark.parametrize("name", sorted(set(GATES) - {"none"}))
def test_every_parameter_and_the_input_get_the_right_gradient(name):
    torch.manual_seed(0)
    layer = gate(name, 6).double()
    assert torch.autograd.gradcheck(layer, (images().requires_grad_(),), atol=1e-6)
    layer(images()).square().sum().backward()
    assert all(parameter.grad.any() for parameter in layer.parameters())


@pytest.mark.parametrize("name", ["se", "eca", "cbam"])
def test_gates_never_amplify(name):
    x = images()
    out = gate(name, 6).double()(x)
    assert (out.abs() < x.abs()).all()
    assert torch.equal(out.sign(), x.sign())


def test_squeezing_is_by_sixteen_but_never_below_eight():
    assert isinstance(gate("se", 256), SqueezeExcite)
    assert gate("se", 256).fc1.out_channels == 16
    assert gate("cbam", 512).channel.fc1.out_features == 32
    assert gate("cbam", 32).channel.fc1.out_features == 8


def test_wrong_names_and_kernels_are_explained():
    with pytest.raises(ValueError, match=r"unknown gate 'cbma'; did you mean 'cbam'\?"):
        gate("cbma", 4)
    with pytest.raises(ValueError, match=r"kernel must be odd and above 0, but got 4"):
        EfficientChannelAttention(8, kernel=4)
