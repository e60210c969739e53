"""MLP, LeNet-5, AlexNet and VGG: sizes from the papers, small layouts, impossible images."""

import pytest
import torch
import torch.nn.functional as F

from orchestrator import models


def build(name, size, **options):
    torch.manual_seed(0)
    return models.create(name, num_classes=10, in_channels=1, image_size=size, **options)


def meta(name, size, **options):
    with torch.device("meta"):
        return build(name, size, **options)


def counts(model):
    return {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_children()}


def test_lenet_has_the_papers_layers():
    found = counts(build("lenet5", 28))
    # Section II.B, but for C3 (2,416 when it sees all maps) and the output layer.
    expected = {"c1": 156, "c3": 2416, "c5": 48120, "f6": 10164, "output": 850}
    assert {name: count for name, count in found.items() if count} == expected


@pytest.mark.parametrize(
    ("options", "act", "pool"),
    [
        ({}, F.relu, F.max_pool2d),
        ({"activation": "tanh", "pool": "average"}, torch.tanh, F.avg_pool2d),
    ],
)
def test_lenet_is_its_formula(options, act, pool):
    model = build("lenet5", 28, **options)
    x = torch.randn(3, 1, 28, 28)
    padded = F.pad(x, (2, 2, 2, 2))
    s2 = pool(act(F.conv2d(padded, model.c1.weight, model.c1.bias)), 2)
    s4 = pool(act(F.conv2d(s2, model.c3.weight, model.c3.bias)), 2)
    f6 = act(act(s4.flatten(1) @ model.c5.weight.T + model.c5.bias) @ model.f6.weight.T)
    torch.testing.assert_close(model(x), f6 @ model.output.weight.T + model.output.bias)


def test_mlp_is_its_formula():
    model = build("mlp", (8, 12), hidden=(32, 16))
    x = torch.randn(3, 1, 8, 12)
    y = x.reshape(3, 96)
    for layer, _, _ in model.hidden:
        assert not layer.bias.any()
        y = (y @ layer.weight.T).clamp(min=0)
    torch.testing.assert_close(model(x), y @ model.fc.weight.T + model.fc.bias)


def test_mlp_without_hidden_layers_is_logistic_regression():
    model = build("mlp", 8, hidden=())
    assert counts(model) == {"hidden": 0, "fc": 650}
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model(x), F.linear(x.flatten(1), model.fc.weight, model.fc.bias))


def test_rectifiers_keep_the_scale_of_what_they_see():
    # He et al., 2015, equation 10: the variance of a layer's weights is 2 / fan-in.
    for name, path in (("mlp", "hidden.1.0"), ("alexnet", "classifier.4"), ("vgg11", "features.6")):
        weight = build(name, 28).get_submodule(path).weight
        deviation = (2 / weight[0].numel()) ** 0.5
        assert weight.std().item() == pytest.approx(deviation, rel=4 * weight.numel() ** -0.5)


def test_vgg_draws_its_classifier_as_torchvision_does_and_the_small_one_as_he_does():
    deviations = {
        stem: build("vgg11", 64, width=0.125, hidden=256, stem=stem).classifier[3].weight.std()
        for stem in ("imagenet", "small")
    }
    assert deviations["imagenet"].item() == pytest.approx(0.01, rel=0.02)
    assert deviations["small"].item() == pytest.approx((2 / 256) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
@pytest.mark.parametrize("training", [True, False])
def test_vggs_numbers_are_torchvisions(name, training, torchvision):
    torch.manual_seed(0)
    ours = models.create(name, num_classes=5, hidden=32, dropout=0.0, image_size=224)
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, torch.nn.Linear):  # or 32 units of so small weights say nothing
            torch.nn.init.kaiming_normal_(module.weight)
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(dropout=0.0)
        for number, (fan_in, units) in {0: (25088, 32), 3: (32, 32), 6: (32, 5)}.items():
            theirs.classifier[number] = torch.nn.Linear(fan_in, units)
    ours = ours.double().train(training)
    theirs = theirs.to_empty(device="cpu").double().train(training)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 40, 40, dtype=torch.double)
    expected = theirs(x)
    assert expected.std(dim=0).mean() > 1e-3
    torch.testing.assert_close(ours(x), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn"])
def test_vggs_small_layout_pools_once_less(name):
    large, small = meta(name, 224), meta(name, 28)
    groups = [f"group{n}" for n in range(2, 6)]
    for model, size, sides in ((large, 224, (112, 56, 28, 14, 7)), (small, 28, (28, 14, 7, 3, 1))):
        _, taps = model.forward_taps(
            torch.empty(1, 1, size, size, device="meta"), ["stem", *groups]
        )
        assert tuple(taps[n].shape[-1] for n in ["stem", *groups]) == sides
    ours, theirs = small.state_dict(), large.state_dict()
    assert list(ours) == list(theirs)
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["classifier.0.weight"]
    assert small.classifier[0].in_features == 512


@pytest.mark.parametrize(
    ("name", "stem", "least"),
    [
        ("alexnet", "small", 15),
        ("alexnet", "imagenet", 63),
        ("vgg19", "small", 16),
        ("vgg19", "imagenet", 32),
        ("lenet5", None, 12),
    ],
)
def test_the_smallest_image_works_and_a_smaller_one_is_refused(name, stem, least):
    options = {"stem": stem} if stem else {}
    logits = meta(name, least, **options)(torch.empty(2, 1, least, least, device="meta"))
    assert logits.shape == (2, 10)
    rule = rf"at least {least} pixels a side, but got image_size 70×{least - 1}; resize"
    with pytest.raises(ValueError, match=rule):
        meta(name, (70, least - 1), **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"hidden": (64, 0)}, r"whole numbers >= 1, but got \[64, 0\]; give the units"),
        ("lenet5", {"activation": "rleu"}, "unknown activation 'rleu'; did you mean 'relu'"),
        ("lenet5", {"pool": "mean"}, "unknown pool 'mean'"),
        ("alexnet", {"hidden": 0}, "hidden must be a number above 0"),
        ("vgg11", {"stem": "tiny"}, "stem must be auto, imagenet or small"),
    ],
)
def test_bad_options_say_what_is_right(name, options, message):
    with pytest.raises(ValueError, match=message):
        meta(name, 28, **options)
