"""The whole pipeline: order, determinism, normalisation, mixing, users' own parts."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from orchestrator.config import data as section
from orchestrator.data.augment import Augmentation, CutMix, Mixup, Pipeline
from orchestrator.data.types import DataInfo
from orchestrator.errors import DataError

EVERYTHING = (
    section.Crop(padding=2),
    section.Flip(),
    section.Affine(degrees=10, translate=0.1, scale=(0.9, 1.1), shear=5, p=0.5),
    section.Rotate(degrees=5),
    section.RandAugment(),
    section.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    section.Erase(),
    section.Mixup(p=0.5),
    section.CutMix(p=0.5),
)


def info(channels=3):
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.25, 0.3)[:channels]
    return DataInfo((channels, 8, 10), ("a", "b", "c"), mean, std, {}, "", "")


def batch(size=32, channels=3):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, channels, 8, 10), dtype=torch.uint8, generator=g)
    return images, torch.randint(3, (size,), generator=g)


def draws(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_everything_at_once_repeats_to_the_bit(channels):
    pipeline = Pipeline(EVERYTHING, info(channels))
    images, labels = batch(channels=channels)
    before = images.clone()
    first, second, other = (pipeline(images, labels, draws(seed)) for seed in (1, 1, 2))
    assert first[0].shape == images.shape and first[0].dtype == torch.float32
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, before), "stored samples are never written to"
    assert first[1].shape == (32, 3)
    assert torch.allclose(first[1].sum(1), torch.ones(32))


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_batches(size):
    images, labels = batch(size)
    augmented, soft = Pipeline(EVERYTHING, info())(images, labels, draws())
    assert augmented.shape == (size, 3, 8, 10)
    assert soft.shape == (size, 3)


def test_without_parts_only_normalises():
    images, labels = batch()
    got, same = Pipeline((), info())(images, labels, draws())
    mean, std = (torch.tensor(v)[:, None, None] for v in (info().mean, info().std))
    assert torch.allclose(got, (images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(same, labels)


def test_crop_flip_normalise_equals_slicing_by_hand():
    images, labels = batch()
    got, _ = Pipeline((section.Crop(padding=2), section.Flip()), info())(images, labels, draws())
    g = draws()
    shift = torch.randint(-2, 3, (32, 2), generator=g)
    flip = torch.rand(32, generator=g) < 0.5
    padded = F.pad(images, (2, 2, 2, 2))
    for n, (dx, dy) in enumerate(shift.tolist()):
        cut = padded[n, :, 2 + dy : 10 + dy, 2 + dx : 12 + dx]
        cut = cut.flip(-1) if flip[n] else cut
        assert torch.allclose(got[n], Pipeline((), info()).normalize(cut), atol=1e-6)


def test_erased_pixels_are_nearly_zero_after_normalisation():
    images = torch.full((200, 3, 8, 10), 255, dtype=torch.uint8)
    part = section.Erase(p=1, area=(0.2, 0.3))
    got, _ = Pipeline((part,), info())(images, torch.zeros(200, dtype=torch.long), draws())
    white = Pipeline((), info()).normalize(images[:1])
    hole = (got - white).abs() > 0.5
    assert 0.1 < hole.float().mean() < 0.35
    # a byte is the nearest that a stored mean can be
    assert (got[hole].abs() <= 0.51 / 255 / 0.2).all()


def test_mixup_blends_images_and_labels_by_the_same_share():
    images, labels = batch(400)
    normal = Pipeline((), info()).normalize(images)
    mixed, partner, share = Mixup(section.Mixup(alpha=1.0, p=0.8)).mix(normal, draws())
    w = share[:, None, None, None]
    assert torch.allclose(mixed, w * normal + (1 - w) * normal[partner], atol=1e-5)
    assert sorted(partner.tolist()) == list(range(400))
    assert abs((share == 1).float().mean() - 0.2) < 4 * math.sqrt(0.16 / 400)
    drawn = share[share < 1]  # Beta(1, 1) is uniform
    assert abs(drawn.mean() - 0.5) < 4 / math.sqrt(12 * len(drawn))
    _, soft = Pipeline((section.Mixup(alpha=1.0, p=0.8),), info())(images, labels, draws())
    hard = F.one_hot(labels, 3).float()
    expected = share[:, None] * hard + (1 - share[:, None]) * hard[partner]
    assert torch.allclose(soft, expected, atol=1e-6)


def test_mixup_shares_follow_beta():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1))."""
    share = Mixup(section.Mixup(alpha=0.2)).mix(torch.zeros(20_000, 1, 1, 1), draws())[2]
    assert abs(share.mean() - 0.5) < 0.015
    assert abs(share.var() - 1 / (4 * 1.4)) < 0.005


def test_cutmix_labels_follow_the_area():
    """Images hold their own number, so that pasted pixels can be counted."""
    size = 200
    own = torch.arange(size, dtype=torch.float32)[:, None, None, None].expand(-1, 2, 16, 20)
    mixed, partner, share = CutMix(section.CutMix(p=0.75)).mix(own, draws())
    pasted = mixed[:, 0] != own[:, 0]
    differs = partner != torch.arange(size)
    assert torch.equal(mixed[:, 0], mixed[:, 1])
    area = pasted.flatten(1).float().mean(1)
    assert torch.allclose(area[differs], (1 - share)[differs])
    partners = partner.float()[:, None, None].expand_as(pasted)
    assert torch.equal(mixed[:, 0][pasted], partners[pasted])
    rows, columns = pasted.any(2).sum(1), pasted.any(1).sum(1)
    assert torch.equal(pasted.flatten(1).sum(1), rows * columns), "it is a rectangle"
    assert 0.15 < (share == 1).float().mean() < 0.4


def test_two_mixers_mix_what_the_first_made():
    images, labels = batch()
    parts = (section.Mixup(alpha=1.0), section.CutMix())
    _, soft = Pipeline(parts, info())(images, labels, draws())
    assert (soft > 0).sum(1).max() == 3, "up to four samples take part, here three classes"
    assert torch.allclose(soft.sum(1), torch.ones(32))


def test_parts_are_applied_in_the_files_order():
    """Erasing before a crop moves the hole to the border; after it never shows black padding."""
    images = torch.full((64, 1, 8, 10), 200, dtype=torch.uint8)
    labels = torch.zeros(64, dtype=torch.long)
    erase = section.Erase(p=1, area=(0.5, 0.9), aspect=1.0)

    def black(parts):
        found, _ = Pipeline(parts, info(1))(images, labels, draws())
        zero = Pipeline((), info(1)).normalize(torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
        return (found == zero).float().mean()

    crop = section.Crop(padding=4)
    assert black((erase, crop)) > 1.5 * black((crop, erase)) > 0


def test_users_own_parts_join_in():
    class Invert(Augmentation):
        def apply(self, canvas, generator):
            canvas.pixels = 255 - canvas.pixels

    images, labels = batch()
    got, _ = Pipeline((Invert(), section.Flip(p=1)), info())(images, labels, draws())
    assert torch.equal(got, Pipeline((), info()).normalize((255 - images).flip(-1)))
    with pytest.raises(DataError, match="must derive from"):
        Pipeline((object(),), info())
