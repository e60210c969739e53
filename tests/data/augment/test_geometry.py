"""Geometry against slicing, affine_grid and torchvision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from orchestrator.config import data as section
from orchestrator.data.augment import Affine, Canvas, Crop, Flip, rotate
from orchestrator.data.augment.canvas import compose, identity
from orchestrator.data.augment.geometry import affine, reflected
from orchestrator.data.augment.groups import Groups
from orchestrator.errors import DataError


def images(batch=64, channels=3, height=9, width=12):
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def draws(seed=1):
    return torch.Generator().manual_seed(seed)


def applied(part, x, seed=1):
    canvas = Canvas(x)
    part.apply(canvas, draws(seed))
    return canvas.pixels


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_crop_equals_pad_and_slice(mode):
    x, p = images(), 3
    got = applied(Crop(section.Crop(padding=p, mode=mode)), x)
    shift = torch.randint(-p, p + 1, (len(x), 2), generator=draws())
    padded = F.pad(x.float(), (p, p, p, p), mode=mode).to(torch.uint8)
    for image, whole, (dx, dy) in zip(got, padded, shift.tolist(), strict=True):
        assert torch.equal(image, whole[:, p + dy : p + dy + 9, p + dx : p + dx + 12])
    assert shift.unique(dim=0).shape[0] > 20, "every sample draws its own"


def test_crop_and_flip_together_equal_one_after_the_other():
    """In both orders, and to the bit: nothing is interpolated."""
    x, p = images(), 2
    crop, flip = Crop(section.Crop(padding=p)), Flip(section.Flip(p=0.5))
    for parts in ((crop, flip), (flip, crop)):
        together, apart, draw = Canvas(x), x, draws()
        for part in parts:
            part.apply(together, draw)
        draw = draws()
        for part in parts:
            canvas = Canvas(apart)
            part.apply(canvas, draw)
            apart = canvas.pixels
        assert torch.equal(together.pixels, apart)


def test_flip_mirrors_about_p_of_the_samples():
    x = images(batch=2000, channels=1, height=2, width=4)
    got = applied(Flip(section.Flip(p=0.3)), x)
    flipped = (got == x.flip(-1)).flatten(1).all(1)
    kept = (got == x).flatten(1).all(1)
    assert bool((flipped | kept).all())
    assert abs(flipped.float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 2000)


def test_reflection_must_fit():
    with pytest.raises(DataError, match=r"padding < side.*padding=9 for 9×12"):
        reflected(images(), torch.zeros(64, 2, dtype=torch.long), 9)


def random_maps(batch):
    g = torch.Generator().manual_seed(3)

    def u(low, high):
        return torch.rand(batch, generator=g) * (high - low) + low

    shift = torch.stack([u(-3, 3), u(-2, 2)], 1)
    return u(-180, 180), shift, u(0.7, 1.4), u(-30, 30)


def test_interpolation_equals_affine_grid():
    x = images()
    maps = affine(*random_maps(len(x)))
    canvas = Canvas(x)
    canvas.move(maps, torch.zeros(len(x), dtype=torch.bool))
    height, width = x.shape[2:]
    theta = maps.clone()
    theta[:, 0, 1] *= height / width
    theta[:, 1, 0] *= width / height
    theta[:, :, 2] *= torch.tensor([2 / width, 2 / height])
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    expected = F.grid_sample(x.float(), grid, align_corners=False).round()
    assert (canvas.pixels.float() - expected).abs().max() <= 1  # rounding of .5 may differ
    assert (canvas.pixels.float() == expected).float().mean() > 0.999


def test_affine_equals_torchvisions(torchvision):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    x = images(batch=8)
    parameters = random_maps(len(x))
    canvas = Canvas(x)
    canvas.move(affine(*parameters), torch.zeros(len(x), dtype=torch.bool))
    angle, shift, scale, shear = (value.tolist() for value in parameters)
    for n in range(len(x)):
        # torchvision cuts shifts to whole pixels for PIL only; tensors keep what is given
        expected = TF.affine(
            x[n], angle[n], shift[n], scale[n], [shear[n], 0.0], InterpolationMode.BILINEAR
        )
        assert (canvas.pixels[n].float() - expected.float()).abs().max() <= 1


def test_composed_maps_equal_one_after_the_other():
    """On a smooth image two resamplings and the composed one are nearly the same."""
    line = torch.linspace(0, 250, 32)
    x = (line[:, None] * 0.5 + line * 0.5).to(torch.uint8).expand(4, 1, 32, 32).contiguous()
    angle = torch.tensor([10.0, -20, 30, 5])
    none, one = torch.zeros(4, 2), torch.ones(4)
    first = affine(angle, none, one, torch.zeros(4))
    second = affine(torch.zeros(4), none + 4, one * 1.1, torch.zeros(4))
    inexact = torch.zeros(4, dtype=torch.bool)
    together, apart = Canvas(x), Canvas(x)
    for maps in (first, second):
        together.move(maps, inexact)
        apart.move(maps, inexact)
        apart.pixels = apart.pixels
    inner = (slice(None), slice(None), slice(10, 22), slice(10, 22))
    error = together.pixels[inner].float() - apart.pixels[inner].float()
    assert error.abs().max() <= 2
    wrong = Canvas(x)
    wrong.move(compose(second, first), inexact)
    assert (wrong.pixels[inner].float() - apart.pixels[inner].float()).abs().max() > 3


def test_exact_and_interpolated_samples_keep_their_places():
    x = images(batch=6)
    maps, exact = identity(6), torch.tensor([True, False, True, False, False, True])
    maps[exact, 0, 0] = -1
    canvas = Canvas(x)
    canvas.move(maps, exact)
    assert torch.equal(canvas.pixels[exact], x[exact].flip(-1))
    assert torch.equal(canvas.pixels[~exact], x[~exact]), "the identity interpolates to itself"


@pytest.mark.parametrize("channels", [1, 3])
def test_exact_maps_equal_their_definition(channels):
    """Mirrored either way, and shifted by up to more than the image's sides."""
    x = images(batch=200, channels=channels)
    height, width = x.shape[2:]
    g = draws()
    mirror = torch.randint(0, 2, (200, 2), generator=g) * 2 - 1
    shift = torch.randint(-width - 3, width + 4, (200, 2), generator=g)
    shift[:4] = torch.tensor([[width, 0], [-width, 0], [0, height], [width, -height]])
    shift[-1] = torch.tensor([width + 3, height])  # beyond the last pixel of the last image
    maps = identity(200)
    maps[:, 0, 0], maps[:, 1, 1] = mirror.T.float()
    maps[:, :, 2] = shift.float()
    canvas = Canvas(x)
    canvas.move(maps, torch.ones(200, dtype=torch.bool))
    expected = torch.zeros_like(x)
    for n in range(200):
        (sx, sy), (dx, dy) = mirror[n].tolist(), shift[n].tolist()
        for i in range(height):
            row = dy + (i if sy > 0 else height - 1 - i)
            for j in range(width):
                column = dx + (j if sx > 0 else width - 1 - j)
                if 0 <= row < height and 0 <= column < width:
                    expected[n, :, i, j] = x[n, :, row, column]
    assert torch.equal(canvas.pixels, expected)


def test_groups_are_sorted_and_put_back():
    of = torch.tensor([3, 0, 3, 1, 0, 3])
    batch = torch.arange(12).view(6, 2)
    groups = Groups(of, 5)
    assert groups.sizes == [2, 1, 0, 3, 0]
    parts = groups.sort(batch).split(groups.sizes)
    for number, part in enumerate(parts):
        assert torch.equal(part.sort(0).values, batch[of == number])
    assert torch.equal(groups.join(parts), batch)


def test_affine_draws_each_sample_within_its_ranges(monkeypatch):
    seen = {}

    def spy(*parameters):
        seen["drawn"] = parameters
        return affine(*parameters)

    monkeypatch.setattr("orchestrator.data.augment.geometry.affine", spy)
    config = section.Affine(degrees=20, translate=0.25, scale=(0.5, 2.0), shear=10)
    applied(Affine(config), images(batch=4000, channels=1, height=8, width=16))
    angle, shift, scale, shear = seen["drawn"]
    limits = [(angle, -20, 20), (shear, -10, 10), (scale, 0.5, 2)]
    limits += [(shift[:, 0], -4, 4), (shift[:, 1], -2, 2)]
    for values, low, high in limits:
        width = high - low
        assert low <= values.min() < low + width / 100
        assert high - width / 100 < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 4 * width / math.sqrt(12 * 4000)


def test_rotation_leaves_some_alone():
    x = images(batch=1000, channels=1)
    got = applied(rotate(section.Rotate(degrees=90, p=0.25)), x)
    changed = (got != x).flatten(1).any(1).float().mean()
    assert abs(changed - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 1000)
