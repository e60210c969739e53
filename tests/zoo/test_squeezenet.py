"""SqueezeNet: sizes that cannot be, and logits that are rectified."""

import pytest
import torch

from orchestrator import models


def build(name, size, **options):
    return models.create(name, num_classes=5, in_channels=1, image_size=size, **options)


@pytest.mark.parametrize(("name", "least"), [("squeezenet1_0", 21), ("squeezenet1_1", 17)])
def test_the_imagenet_layout_says_what_it_needs(name, least):
    with torch.device("meta"):
        model = build(name, least, stem="imagenet").eval()
        assert model(torch.empty(2, 1, least, least)).shape == (2, 5)
        with pytest.raises(RuntimeError):
            model(torch.empty(2, 1, least - 1, least - 1))
        with pytest.raises(
            ValueError, match=rf"at least {least} pixels a side, but got .*; choose"
        ):
            build(name, least - 1, stem="imagenet")


@pytest.mark.parametrize(("size", "sides"), [(28, (28, 14, 7)), (8, (8, 4, 2))])
def test_the_small_layout_pools_twice(size, sides):
    with torch.device("meta"):
        model = build("squeezenet1_1", size)
        _, taps = model.forward_taps(torch.empty(1, 1, size, size), ["group1", "group2", "group3"])
    assert tuple(t.shape[-1] for t in taps.values()) == sides


def test_logits_are_means_of_rectified_maps():
    torch.manual_seed(0)
    model = build("squeezenet1_1", 28, width=0.25).eval()
    features = model.forward_features(torch.randn(3, 1, 28, 28))
    expected = model.classifier[1](features).clamp(min=0).mean((2, 3))
    torch.testing.assert_close(model.forward_head(features), expected)


def test_norms_come_with_the_small_stem_unless_told():
    def norms(**options):
        with torch.device("meta"):
            modules = build("squeezenet1_0", 28, **options).modules()
        return sum(isinstance(module, torch.nn.BatchNorm2d) for module in modules)

    # The first convolution's, and two for each of eight fire modules.
    assert [norms(), norms(stem="imagenet"), norms(norm=False)] == [17, 0, 0]
    assert norms(stem="imagenet", norm=True) == 17


def test_without_norms_every_parameter_of_the_small_layout_learns():
    torch.manual_seed(0)
    model = build("squeezenet1_1", 28, width=0.25, norm=False, dropout=0.0)
    model(torch.randn(4, 1, 28, 28)).square().sum().backward()
    assert all(p.grad.any() for p in model.parameters())
