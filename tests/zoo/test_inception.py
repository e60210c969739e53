"""Inception-v4 and Inception-ResNet-v2: their grids, the small layout, impossible sizes."""

import pytest
import torch

from orchestrator import models

NAMES = ["inception_v4", "inception_resnet_v2"]
GROUPS = ["mixed5", "mixed6", "mixed7"]


def build(name, size, **options):
    with torch.device("meta"):
        return models.create(name, num_classes=5, in_channels=1, image_size=size, **options)


def sides(model, size):
    _, taps = model.eval().forward_taps(torch.empty(1, 1, size, size, device="meta"), GROUPS)
    return [tuple(taps[name].shape[1:]) for name in GROUPS]


@pytest.mark.parametrize(
    ("name", "channels"),
    [("inception_v4", (384, 1024, 1536)), ("inception_resnet_v2", (320, 1088, 2080))],
)
def test_grids_are_the_papers_and_smaller_for_small_images(name, channels):
    large, small = build(name, 299), build(name, 28)
    assert sides(large, 299) == [(c, s, s) for c, s in zip(channels, (35, 17, 8), strict=True)]
    assert sides(small, 28) == [(c, s, s) for c, s in zip(channels, (14, 7, 4), strict=True)]
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (large, small)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_size_has_a_layout_and_the_original_says_what_it_needs(name):
    assert sides(build(name, 8), 8)[-1][1:] == (1, 1)
    assert sides(build(name, 74), 74)[-1][1:] == (10, 10)
    assert sides(build(name, 75), 75)[-1][1:] == (1, 1)
    with pytest.raises(ValueError, match=r"at least 75 pixels a side, but got .*74×74; choose"):
        build(name, 74, stem="imagenet")
    with pytest.raises(ValueError, match="stem must be auto, imagenet or small, but got 'big'"):
        build(name, 299, stem="big")


def test_depth_and_width_multiply():
    slim = build("inception_v4", 28, depth=0.5, width=0.5)
    names = [stage.name for stage in slim.stages()]
    # Half of four, seven and three blocks, and the reduction before each.
    assert [sum(n.startswith(group) for n in names) for group in GROUPS] == [3, 5, 3]
    assert slim.last_linear.in_features == 768


def test_a_residual_is_scaled():
    torch.manual_seed(0)
    model = models.create("inception_resnet_v2", num_classes=5, image_size=28, width=0.125).eval()
    for block, scale in ((model.repeat[0], 0.17), (model.repeat_1[0], 0.1), (model.block8, 1.0)):
        x = torch.randn(2, block.channels, 4, 4)
        y = torch.cat([block.get_submodule(f"branch{n}")(x) for n in range(len(block.names))], 1)
        expected = x + scale * block.conv2d(y)
        if block is not model.block8:
            expected = expected.clamp(min=0)
        torch.testing.assert_close(block(x), expected)
