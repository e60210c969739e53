"""Inception-v2 against Figure 5 of its paper."""

import torch

from orchestrator import models

FIGURE = {  # output channels, and side of the output for 224 pixels
    "3a": (256, 28),
    "3b": (320, 28),
    "3c": (576, 14),
    "4a": (576, 14),
    "4b": (576, 14),
    "4c": (576, 14),
    "4d": (576, 14),
    "4e": (1024, 7),
    "5a": (1024, 7),
    "5b": (1024, 7),
}


def build(size, **options):
    with torch.device("meta"):
        return models.create("inception_v2", num_classes=1000, image_size=size, **options)


def taps_of(model, size):
    names = [f"inception{n[0]}.{'abcde'.index(n[1])}" for n in FIGURE]
    _, taps = model.forward_taps(torch.empty(2, 3, size, size, device="meta"), names)
    return {figure: tuple(taps[n].shape[1:]) for figure, n in zip(FIGURE, names, strict=True)}


def test_modules_put_out_what_the_figure_says():
    expected = {name: (c, side, side) for name, (c, side) in FIGURE.items()}
    assert taps_of(build(224), 224) == expected
    assert taps_of(build(28), 28) == expected


def test_parameters_are_those_of_the_figure():
    def conv(channels_in, channels_out, kernel):
        return channels_in * channels_out * kernel**2 + 2 * channels_out  # with scale and shift

    def module(c, one, reduce3, three, reduce_double, double, pool):
        total = conv(c, reduce3, 1) + conv(reduce3, three, 3)
        total += conv(c, reduce_double, 1) + conv(reduce_double, double, 3)
        total += conv(double, double, 3)
        return total + sum(conv(c, width, 1) for width in (one, pool) if width)

    stem = 7 * 7 * 3 * 8 + conv(24, 64, 1) + conv(64, 64, 1) + conv(64, 192, 3)
    expected = {
        "3a": module(192, 64, 64, 64, 64, 96, 32),
        "3b": module(256, 64, 64, 96, 64, 96, 64),
        "3c": module(320, 0, 128, 160, 64, 96, 0),
        "4a": module(576, 224, 64, 96, 96, 128, 128),
        "4b": module(576, 192, 96, 128, 96, 128, 128),
        "4c": module(576, 160, 128, 160, 128, 160, 96),
        "4d": module(576, 96, 128, 192, 160, 192, 96),
        "4e": module(576, 0, 128, 192, 192, 256, 0),
        "5a": module(1024, 352, 192, 320, 160, 224, 128),
        "5b": module(1024, 352, 192, 320, 192, 224, 128),
    }
    model = build(224)
    for name, count in expected.items():
        block = model.get_submodule(f"inception{name}")
        assert sum(p.numel() for p in block.parameters()) == count, name
    total = sum(p.numel() for p in model.parameters())
    assert total == stem + sum(expected.values()) + 1025 * 1000
    assert total == models.published("inception_v2").parameters


def test_every_size_works():
    for size in (8, 65):
        assert build(size)(torch.empty(2, 3, size, size, device="meta")).shape == (2, 1000)
