"""Inception-v3: its auxiliary head, initialisation and small layout."""

import pytest
import torch

from orchestrator import models

GROUPS = ["stem", "mixed5", "mixed6", "mixed7"]


def build(size, **options):
    torch.manual_seed(0)
    return models.create("inception_v3", num_classes=5, in_channels=1, image_size=size, **options)


def sides(size, **options):
    with torch.device("meta"):
        _, taps = build(size, **options).forward_taps(torch.empty(2, 1, size, size), GROUPS)
    return [taps[name].shape[-1] for name in GROUPS]


def test_grids_are_the_papers_and_a_small_image_keeps_its_pixels():
    assert sides(299) == [35, 35, 17, 8]
    assert sides(28) == [28, 28, 13, 6]
    assert sides(75) == [7, 7, 3, 1]
    assert sides(74) == [74, 74, 36, 17]
    assert sides(8) == [8, 8, 3, 1]


def test_both_layouts_have_the_same_weights():
    with torch.device("meta"):
        shapes = [{k: v.shape for k, v in build(s).state_dict().items()} for s in (28, 299)]
    assert shapes[0] == shapes[1]


def test_the_original_layout_says_what_it_needs():
    rule = r"inception_v3 needs images of at least 75 pixels .* 74×74; .* choose stem: small"
    with torch.device("meta"), pytest.raises(ValueError, match=rule):
        build(74, stem="imagenet")


@pytest.mark.parametrize("side", [17, 20])
@pytest.mark.parametrize("training", [True, False])
def test_the_auxiliary_head_is_torchvisions(side, training, torchvision):
    ours = build(28).AuxLogits.double().train(training)
    theirs = torchvision.models.inception.InceptionAux(768, 5).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 768, side, side, dtype=torch.double)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_the_auxiliary_head_speaks_while_training():
    model, x = build(28, width=0.125), torch.rand(2, 1, 28, 28)
    assert [y.shape for y in model(x)] == [(2, 5), (2, 5)]
    assert model.eval()(x).shape == (2, 5)
    plain = build(28, width=0.125, aux=False)
    assert plain(x).shape == (2, 5)
    assert plain.head_names == ("fc",)
    assert plain.key_map("AuxLogits.fc.weight") is None
    assert model.key_map("AuxLogits.fc.weight") == "AuxLogits.fc.weight"


def test_weights_start_as_torchvisions():
    model = build(28)
    expected = {
        "Mixed_6b.branch7x7_2.conv": 0.1,
        "fc": 0.1,
        "AuxLogits.conv0.conv": 0.1,
        "AuxLogits.conv1.conv": 0.01,
        "AuxLogits.fc": 0.001,
    }
    for fresh in (False, True):
        if fresh:
            model.reset_head(7)
        for path, deviation in expected.items():
            weight = model.get_submodule(path).weight
            error = 5 * weight.numel() ** -0.5
            assert weight.std().item() == pytest.approx(deviation, rel=error), path
