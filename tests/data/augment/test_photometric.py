"""Tables, colour jitter, erasing and RandAugment against torchvision and the papers."""

from __future__ import annotations

import math

import pytest
import torch

from orchestrator.config import data as section
from orchestrator.data.augment import Canvas, ColorJitter, Erase, RandAugment, tables
from orchestrator.data.augment.randaugment import OPERATIONS


def images(batch=12, channels=3, height=10, width=14):
    """Noise over narrow ranges, so that contrast and histograms have something to do."""
    g = torch.Generator().manual_seed(0)
    span = torch.randint(1, 256, (batch, channels, 1, 1), generator=g)
    start = (torch.rand(batch, channels, 1, 1, generator=g) * (256 - span)).long()
    noise = torch.rand(batch, channels, height, width, generator=g)
    return (start + noise * span).to(torch.uint8)


@pytest.fixture(scope="module")
def reference(torchvision):
    from torchvision.transforms import functional

    return functional


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("equalize", tables.equalize, "equalize"),
        ("autocontrast", tables.autocontrast, "autocontrast"),
    ],
)
def test_histogram_operations_equal_torchvisions(reference, channels, name, ours, theirs):
    x = images(channels=channels)
    x[0] = 77  # a flat image stays as it is
    x[1, :, :5] = 3  # two values only
    x[1, :, 5:] = 200
    got = tables.look_up(x, ours(x))
    expected = torch.stack([getattr(reference, theirs)(image) for image in x])
    assert torch.equal(got, expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 1.9])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "sharpness"])
def test_factors_equal_torchvisions(reference, channels, factor, name):
    x = images(channels=channels)
    factors = torch.full((len(x),), factor)
    got = {
        "brightness": lambda: tables.look_up(x, tables.brightness(factors)),
        "contrast": lambda: tables.look_up(x, tables.contrast(x, factors)),
        "saturation": lambda: tables.saturate(x, factors),
        "sharpness": lambda: tables.sharpen(x, factors),
    }[name]()
    adjust = getattr(reference, f"adjust_{name}")
    expected = torch.stack([adjust(image, factor) for image in x])
    difference = (got.float() - expected.float()).abs()
    assert difference.max() <= 1  # the order of two products decides how .9999 is cut
    assert (difference > 0).float().mean() < 0.05


def test_posterize_and_solarize_equal_torchvisions(reference):
    x = images()
    for bits in (1, 4, 7, 8):
        assert torch.equal(tables.look_up(x, tables.posterize(bits)), reference.posterize(x, bits))
    for threshold in (0.0, 100.0, 127.5, 255.0):
        table = tables.solarize(torch.full((len(x),), threshold))
        assert torch.equal(tables.look_up(x, table), reference.solarize(x, threshold))


def test_each_sample_has_its_own_factor():
    x = images(batch=3)
    factors = torch.tensor([0.2, 1.0, 1.7])
    together = tables.look_up(x, tables.contrast(x, factors))
    for n in range(3):
        alone = tables.look_up(x[n : n + 1], tables.contrast(x[n : n + 1], factors[n : n + 1]))
        assert torch.equal(together[n : n + 1], alone)


def jittered(config, x, seed=1):
    canvas = Canvas(x)
    ColorJitter(config).apply(canvas, torch.Generator().manual_seed(seed))
    return canvas.pixels


def test_color_jitter_draws_factors_around_one():
    x = torch.full((3000, 1, 1, 1), 100, dtype=torch.uint8)
    got = jittered(section.ColorJitter(brightness=0.4), x).float().flatten() / 100
    assert 0.59 <= got.min() < 0.62
    assert 1.37 < got.max() <= 1.4
    assert abs(got.mean() - 0.995) < 4 * 0.8 / math.sqrt(12 * 3000)
    assert torch.equal(jittered(section.ColorJitter(), images()), images())
    grey = images(channels=1)
    assert torch.equal(jittered(section.ColorJitter(saturation=1), grey), grey)


def erased(config, x, mean=(), seed=1):
    part = Erase(config)
    part.mean = mean
    canvas = Canvas(x)
    part.apply(canvas, torch.Generator().manual_seed(seed))
    return canvas.pixels


def test_erase_fills_one_rectangle_within_its_ranges():
    x = torch.full((800, 2, 30, 40), 255, dtype=torch.uint8)
    got = erased(section.Erase(p=0.7, area=(0.1, 0.2), aspect=2.0), x, mean=(0.4, 0.6))
    hole = got[:, 0] != 255
    assert torch.equal(hole, got[:, 1] != 255)
    assert set(got[:, 0].unique().tolist()) == {102, 255}
    assert set(got[:, 1].unique().tolist()) == {153, 255}
    hit = hole.flatten(1).any(1)
    assert abs(hit.float().mean() - 0.7) < 4 * math.sqrt(0.7 * 0.3 / 800)
    height, width = hole.any(2).sum(1)[hit], hole.any(1).sum(1)[hit]
    area = hole.flatten(1).sum(1)[hit]
    assert torch.equal(area, height * width), "it is a rectangle"
    share = area / 1200
    assert 0.09 < share.min() < 0.11 and 0.19 < share.max() < 0.22  # sides are whole pixels
    aspect = height / width
    assert aspect.min() > 0.45 and aspect.max() < 2.2
    assert aspect.min() < 0.6 and aspect.max() > 1.7
    edges = (hole[:, 0], hole[:, -1], hole[:, :, 0], hole[:, :, -1])
    assert all(edge.any() for edge in edges), "it reaches every side"


def test_erase_without_room_leaves_the_image():
    x = images(batch=50)
    assert torch.equal(erased(section.Erase(p=1, area=(1.0, 1.0)), x), x)


# --- RandAugment ---------------------------------------------------------------------------------


def performed(name, sign, x, magnitude=9):
    canvas = Canvas(x)
    codes = torch.full((1, len(x)), OPERATIONS.index(name))
    part = RandAugment(section.RandAugment(operations=1, magnitude=magnitude))
    part.perform(canvas, codes, torch.full((1, len(x)), sign))
    return canvas.pixels


def torchvision_space(torchvision, bins, size):
    from torchvision.transforms import RandAugment as Theirs

    return Theirs()._augmentation_space(bins, size)


def test_operations_are_the_papers(torchvision):
    theirs = torchvision_space(torchvision, 31, (10, 14))
    assert sorted(name.replace("_", "") for name in OPERATIONS) == sorted(
        name.lower() for name in theirs
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 5, 9, 30])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_equals_torchvisions(torchvision, name, sign, magnitude, channels):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.autoaugment import _apply_op

    x = images(batch=4, channels=channels)
    names = {name.lower(): name for name in torchvision_space(torchvision, 31, (10, 14))}
    theirs = names[name.replace("_", "")]
    values, signed = torchvision_space(torchvision, 31, (10, 14))[theirs]
    value = float(values[magnitude]) if values.ndim else 0.0
    value *= sign if signed else 1
    expected = torch.stack(
        [_apply_op(image, theirs, value, InterpolationMode.BILINEAR, None) for image in x]
    )
    difference = (performed(name, sign, x, magnitude).float() - expected.float()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.05


def test_operations_are_drawn_per_sample_and_evenly(monkeypatch):
    seen = []
    monkeypatch.setattr(
        RandAugment, "perform", lambda self, canvas, codes, signs: seen.append((codes, signs))
    )
    x = torch.zeros(7000, 1, 2, 2, dtype=torch.uint8)
    RandAugment(section.RandAugment(operations=2)).apply(
        Canvas(x), torch.Generator().manual_seed(0)
    )
    codes, signs = seen[0]
    counts = codes.flatten().bincount(minlength=14).float()
    expected = 2 * 7000 / 14
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()
    assert set(signs.unique().tolist()) == {-1, 1}
    assert (codes[0] == codes[1]).float().mean() < 0.1


def test_randaugment_handles_each_sample_by_itself():
    """A batch's result is its samples' results, whatever stands beside them."""
    x = images(batch=200)
    g = torch.Generator().manual_seed(5)
    codes = torch.randint(14, (3, 200), generator=g)
    signs = torch.randint(2, (3, 200), generator=g) * 2 - 1
    part = RandAugment(section.RandAugment(operations=3, magnitude=12))
    whole = Canvas(x)
    part.perform(whole, codes, signs)
    for start in (0, 37, 199):
        chosen = slice(start, start + 23)
        alone = Canvas(x[chosen])
        part.perform(alone, codes[:, chosen], signs[:, chosen])
        assert torch.equal(whole.pixels[chosen], alone.pixels)
