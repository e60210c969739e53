"""From a `model:` section to a network: imported classes, weights, frozen parameters."""

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.config.model import ImportedModel
from orchestrator.config.zoo.efficientnet import EfficientNet
from orchestrator.errors import UserError, WeightsError
from orchestrator.networks import build_network

SHAPE = (1, 28, 28)


def small(**options):
    section = EfficientNet(type="efficientnet_small", width=0.25, **options)
    return build_network(section, outputs=10, shape=SHAPE)


def test_any_class_can_be_named():
    section = ImportedModel(
        target="torch.nn:Conv2d",
        args={"in_channels": "$channels", "out_channels": "$outputs", "kernel_size": 28},
    )
    network = build_network(section, outputs=7, shape=SHAPE)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 7, 1, 1)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("no_such_package.nets:Net", "no_such_package"),
        ("torch.nn:NoSuchLayer", "NoSuchLayer"),
        ("torch:zeros", "is no torch.nn.Module"),
        ("torch.nn:Linear", "missing"),
    ],
)
def test_what_can_not_be_built_is_explained(target, why):
    args = {"size": [1]} if target == "torch:zeros" else {}
    with pytest.raises(UserError, match=why):
        build_network(ImportedModel(target=target, args=args), outputs=7, shape=SHAPE)


def test_frozen_patterns_freeze_what_they_match_and_nothing_else():
    network = small(freeze=["features.0.*", "features.1.*"])
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad != name.startswith(("features.0.", "features.1."))
    with pytest.raises(UserError, match=r"'stem\.\*' matches no parameter; there are classifier"):
        small(freeze=["stem.*"])


def test_weights_are_read_and_a_misfit_is_explained(tmp_path):
    torch.manual_seed(1)
    source, path = small(), tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    torch.manual_seed(2)
    loaded = small(weights=str(path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    wider = EfficientNet(type="efficientnet_small", width=0.5, weights=str(path))
    with pytest.raises(WeightsError, match=r"model\.weights"):
        build_network(wider, outputs=10, shape=SHAPE)
    with pytest.raises(WeightsError, match=r"model\.weights"):
        small(weights=str(tmp_path / "none.safetensors"))


def test_an_impossible_input_is_explained():
    with pytest.raises(UserError, match="image_size"):
        build_network(EfficientNet(type="efficientnet_b0"), outputs=10, shape=(1, 4, 4))
