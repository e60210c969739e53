"""GoogLeNet: auxiliary heads, the published weights' input, the small layout."""

import pytest
import torch
from safetensors.torch import save_file

from orchestrator import models
from orchestrator.models.layers.auxiliary import half_range
from orchestrator.models.weights import load_weights

SLIM = {"width": 0.125}


def build(classes=5, channels=1, size=28, **options):
    torch.manual_seed(0)
    options = SLIM | options
    return models.create(
        "googlenet", num_classes=classes, in_channels=channels, image_size=size, **options
    )


def test_auxiliary_heads_speak_while_training():
    model, x = build(), torch.rand(2, 1, 28, 28)
    assert [y.shape for y in model(x)] == [(2, 5)] * 3
    assert model.head_names == ("fc", "aux2.fc2", "aux1.fc2")
    assert model.eval()(x).shape == (2, 5)
    assert build(aux=False)(x).shape == (2, 5)


def test_taps_are_features_while_auxiliary_logits_ride_along():
    _, taps = build().forward_taps(torch.rand(2, 1, 28, 28), ["inception3", "inception5"])
    assert taps["inception3"].shape[2:] == (28, 28)
    assert taps["inception5"].shape[2:] == (7, 7)


def test_weights_with_auxiliary_heads_load_into_a_network_without(tmp_path):
    whole = build()
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    plain = build(aux=False)
    report = load_weights(plain, tmp_path / "whole.safetensors")
    heads = [key for key in whole.state_dict() if key.startswith("aux")]
    assert report.loaded == len(whole.state_dict()) - len(heads)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(plain.eval()(x), whole.eval()(x))


def test_another_class_count_leaves_all_three_heads_fresh(tmp_path):
    save_file(build(classes=7).state_dict(), tmp_path / "seven.safetensors")
    model = build()
    fresh = {name: model.get_submodule(name).weight.clone() for name in model.head_names}
    assert load_weights(model, tmp_path / "seven.safetensors").head_replaced == 7
    for name, weight in fresh.items():
        assert torch.equal(model.get_submodule(name).weight, weight)


def test_images_get_the_normalisation_of_the_published_weights():
    x = torch.rand(2, 3, 8, 8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(half_range((x - mean) / deviation), (x - 0.5) / 0.5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_transform_input_is_torchvisions(name, torchvision):
    given = {"num_classes": 5, "transform_input": True}
    ours = models.create(name, image_size=32, width=0.125, **given).eval()
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None, init_weights=False, **given)
    x = torch.rand(2, 3, 32, 32)
    changed = theirs._transform_input(x)
    torch.testing.assert_close(half_range(x), changed)
    stem = ours.stages()[0].fn(x)
    ours.transform_input = False
    torch.testing.assert_close(ours.stages()[0].fn(changed), stem)
    with pytest.raises(ValueError, match=r"three channels .* but got in_channels 1; leave it"):
        models.create(name, num_classes=5, in_channels=1, image_size=32, transform_input=True)


def test_small_images_reach_the_modules_whole():
    with torch.device("meta"):
        stem = build(size=28).stages()[0].fn
        large = build(size=224).stages()[0].fn
        assert stem(torch.empty(1, 1, 28, 28)).shape[-1] == 28
        assert large(torch.empty(1, 1, 224, 224)).shape[-1] == 28


def test_the_smallest_images():
    with torch.device("meta"):
        assert build(size=8)(torch.empty(2, 1, 8, 8))[0].shape == (2, 5)
        whole = build(size=15, stem="imagenet")
        assert whole(torch.empty(2, 1, 15, 15))[0].shape == (2, 5)
        rule = r"googlenet needs images of at least 15 pixels .* 14×14; .* choose stem: small"
        with pytest.raises(ValueError, match=rule):
            build(size=14, stem="imagenet")


def test_weights_start_as_torchvisions():
    model = build(width=1.0)
    for path in ("inception4a.branch2.1.conv", "fc", "aux1.fc1"):
        weight = model.get_submodule(path).weight
        assert weight.std().item() == pytest.approx(0.01, rel=5 * weight.numel() ** -0.5)
