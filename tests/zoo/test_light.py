"""What the networks for small devices promise beyond the rest."""

import pytest
import torch
from torch.nn import functional as F

from orchestrator import models
from orchestrator.models.layers.conv import SqueezeExcite
from orchestrator.models.shufflenet_v2 import shuffle

LIGHT = [
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "shufflenet_v2_x1_0",
]


def make(name: str, **options) -> torch.nn.Module:
    given = {"num_classes": 1000, "in_channels": 3, "image_size": 224} | options
    return models.create(name, **given)


@pytest.mark.parametrize("name", LIGHT)
def test_fresh_weights_are_spread_as_the_references(name, torchvision, timm):
    library, _, theirs = models.published(name).reference.partition(":")
    torch.manual_seed(0)
    ours = make(name).state_dict()
    if library == "timm":
        theirs = timm.create_model(theirs)
    else:
        theirs = torchvision.models.get_model(theirs, weights=None)
    for key, value in theirs.state_dict().items():
        if not value.is_floating_point() or not value.std() > 0:  # norms, statistics, zero biases
            assert torch.equal(ours[key], value), key
        elif value.numel() >= 256:
            spread, n = value.std().item(), value.numel()
            # Five standard errors of a standard deviation, twice estimated, and of a mean.
            assert ours[key].std().item() == pytest.approx(spread, rel=5 * n**-0.5), key
            assert abs(ours[key].mean().item()) < 5 * spread * n**-0.5, key


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize(("size", "stem"), [(64, "small"), (65, "imagenet")])
def test_auto_keeps_small_images_whole(name, size, stem):
    with torch.device("meta"):
        model = make(name, image_size=size)
        out = model.stages()[0].fn(torch.empty(1, 3, 64, 64))
    halvings = 0 if stem == "small" else 2 if name.startswith("shuffle") else 1
    assert out.shape[-1] == 64 >> halvings


@pytest.mark.parametrize("name", [*LIGHT, "resnet9", "wrn_28_10"])
def test_the_smallest_image_works(name):
    with torch.device("meta"):
        model = make(name, image_size=8, width=0.25)
        assert model.eval()(torch.empty(1, 3, 8, 8)).shape == (1, 1000)


@pytest.mark.parametrize("name", [*LIGHT, "resnet9", "wrn_28_10"])
@pytest.mark.parametrize("option", [{"width": 0.0}, {"dropout": 1.0}])
def test_bad_options_are_refused(name, option):
    (word,) = option
    with pytest.raises(ValueError, match=f"{word} must be .* but got {option[word]}"):
        make(name, **option)


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.4])
def test_width_is_torchvisions(width, torchvision):
    from torchvision.models.mobilenetv3 import MobileNetV3, _mobilenet_v3_conf

    with torch.device("meta"):
        rows, hidden = _mobilenet_v3_conf("mobilenet_v3_small", width_mult=width)
        pairs = [
            (
                make("mobilenet_v2", width=width),
                torchvision.models.mobilenet_v2(width_mult=width),
            ),
            (make("mobilenet_v3_small", width=width), MobileNetV3(rows, hidden)),
        ]
    for ours, theirs in pairs:
        found = {key: value.shape for key, value in ours.state_dict().items()}
        assert found == {key: value.shape for key, value in theirs.state_dict().items()}


def test_shuffle_interleaves():
    left, right = torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)
    left += torch.arange(3)[:, None, None] * 2
    right += torch.arange(3)[:, None, None] * 2
    assert torch.equal(shuffle(left, right)[1, :, 2, 3], torch.arange(6.0))


def test_half_of_the_channels_passes_through():
    unit = make("shufflenet_v2_x0_5", width=0.5).stage2[1]
    x = torch.randn(2, 24, 4, 4)
    assert torch.equal(unit(x)[:, ::2], x[:, :12])


def test_mobilenet_v3_gates_with_a_hard_sigmoid():
    model = make("mobilenet_v3_small", width=0.25).double()
    gates = [m for m in model.modules() if isinstance(m, SqueezeExcite)]
    assert len(gates) == 9
    gate = gates[0]
    x = torch.randn(2, gate.fc1.in_channels, 3, 3, dtype=torch.double)
    hidden = F.relu(x.mean((2, 3)) @ gate.fc1.weight.flatten(1).T + gate.fc1.bias)
    scores = hidden @ gate.fc2.weight.flatten(1).T + gate.fc2.bias
    factors = ((scores + 3) / 6).clamp(0, 1)
    torch.testing.assert_close(gate(x), x * factors[:, :, None, None])
