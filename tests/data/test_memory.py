"""The in-memory loader: what ranks get, and that it is the same whoever computes it."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import torch

from orchestrator.config.base import build
from orchestrator.config.data import (
    Crop,
    DataConfig,
    Flip,
    Mixup,
    RandAugment,
    SplitConfig,
    Synthetic,
)
from orchestrator.data import memory
from orchestrator.data.memory import describe, load_data, statistics
from orchestrator.errors import DataError

SOURCE = Synthetic(samples=103, test_samples=11, size=8, channels=3, classes=4)


class Rank:
    """A rank of a group that is not there: loaders never communicate."""

    device = torch.device("cpu")

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size


def loader(rank=None, *, batch_size=16, micro_batch=None, seed=0, extra=None, **data):
    config = DataConfig(source=data.pop("source", SOURCE), **data)
    return build(
        "loader",
        config.loader,
        data=config,
        seed=seed,
        batch_size=batch_size,
        micro_batch=micro_batch,
        worker=rank or Rank(),
        extra_targets=extra or {},
    )


def same(first, second) -> bool:
    return (
        torch.equal(first.ids, second.ids)
        and torch.equal(first.inputs["image"], second.inputs["image"])
        and all(torch.equal(first.targets[name], second.targets[name]) for name in first.targets)
    )


def test_an_epoch_brings_each_training_sample_once():
    found = loader(micro_batch=5)
    ids = load_data(DataConfig(source=SOURCE)).ids["train"]
    batches = list(found.train(0))
    assert len(batches) == found.steps_per_epoch == -(-len(ids) // 16)
    seen = torch.cat([part.ids for batch in batches for part in batch.micro_batches])
    assert sorted(seen.tolist()) == ids.tolist()
    assert all(batch.samples == sum(map(len, batch.micro_batches)) for batch in batches)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert batches[0].numbers == (0, 1, 2, 3)


def test_images_are_normalised_and_labels_belong_to_them():
    data = load_data(DataConfig(source=SOURCE))
    for batch in itertools.islice(loader().train(0), 2):
        part = batch.micro_batches[0]
        raw = data.train.inputs["image"][part.ids.numpy()].transpose(0, 3, 1, 2) / 255
        mean, std = (np.array(v)[:, None, None] for v in (data.info.mean, data.info.std))
        assert part.inputs["image"].dtype == torch.float32
        assert np.allclose(part.inputs["image"], (raw - mean) / std, atol=1e-5)
        assert part.targets["label"].tolist() == data.train.targets["label"][part.ids].tolist()


def test_statistics_equal_numpys():
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 4, 2), np.uint8)
    ids = np.arange(0, 3000, 2)
    mean, std = statistics(images, ids)
    chosen = images[ids] / 255
    assert np.allclose(mean, chosen.mean((0, 1, 2)))
    assert np.allclose(std, chosen.std((0, 1, 2)))
    assert statistics(np.full((5, 2, 2, 1), 51, np.uint8), np.arange(5)) == ([0.2], [1.0])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_compute_together_what_one_accumulates(world_size):
    """Same micro-batches, same augmentation, to the bit; only the owner differs."""
    augment = (Crop(padding=1), Flip(), RandAugment(), Mixup())
    alone = loader(micro_batch=-(-16 // world_size), augment=augment)
    ranks = [loader(Rank(r, world_size), augment=augment) for r in range(world_size)]
    for whole, *shares in zip(alone.train(1), *(rank.train(1) for rank in ranks), strict=True):
        parts = [part for share in shares for part in share.micro_batches]
        numbers = [number for share in shares for number in share.numbers]
        assert numbers == list(whole.numbers)
        assert {share.samples for share in shares} == {whole.samples}
        assert all(map(same, whole.micro_batches, parts))


def test_a_resumed_epoch_continues_to_the_bit():
    augment = (Crop(padding=1), RandAugment())
    whole = list(loader(augment=augment).train(3))
    resumed = list(loader(augment=augment).train(3, start=2))
    assert [batch.index for batch in resumed] == [batch.index for batch in whole[2:]]
    for first, second in zip(whole[2:], resumed, strict=True):
        assert same(first.micro_batches[0], second.micro_batches[0])


def test_seed_and_epoch_change_order_and_augmentation():
    def first(seed, epoch):
        return next(loader(seed=seed, augment=(Crop(padding=2),)).train(epoch)).micro_batches[0]

    assert same(first(0, 0), first(0, 0))
    assert first(0, 0).ids.tolist() != first(0, 1).ids.tolist()
    assert first(0, 0).ids.tolist() != first(1, 0).ids.tolist()


def test_fewer_samples_than_micro_batches_leave_empty_ones():
    source = Synthetic(samples=6, test_samples=0, size=8, classes=2)
    split = SplitConfig(val=0, select=0)
    ranks = [
        loader(Rank(r, 4), source=source, split=split, batch_size=4, augment=(RandAugment(),))
        for r in range(4)
    ]
    last = [list(rank.train(0))[-1] for rank in ranks]
    assert [len(batch.micro_batches[0]) for batch in last] == [1, 1, 0, 0]
    assert last[3].micro_batches[0].inputs["image"].shape == (0, 1, 8, 8)


@pytest.mark.parametrize("split", ["train", "val", "select", "test"])
def test_evaluation_reads_a_split_once_in_order(split):
    ids = load_data(DataConfig(source=SOURCE)).ids[split].tolist()
    ranks = [loader(Rank(r, 3), augment=(Crop(padding=2),)) for r in range(3)]
    parts = [list(rank.evaluate(split, batch_size=4)) for rank in ranks]
    assert [i for part in parts for batch in part for i in batch.ids.tolist()] == ids
    assert max(len(batch) for part in parts for batch in part) <= 4
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    again = list(ranks[0].evaluate(split, batch_size=4))
    assert all(map(same, parts[0], again))


def test_a_rank_without_samples_gets_an_empty_batch():
    split = SplitConfig(val=0.01, select=0)
    batches = [list(loader(Rank(r, 2), split=split).evaluate("val")) for r in range(2)]
    assert [[len(batch) for batch in part] for part in batches] == [[0], [1]]


def test_extra_targets_are_joined_by_id():
    logits = np.random.default_rng(0).normal(size=(103, 4)).astype(np.float32)
    found = loader(extra={"teacher_logits": logits}, augment=(Crop(padding=1),))
    for batch in found.train(0):
        for part in batch.micro_batches:
            assert np.array_equal(part.targets["teacher_logits"], logits[part.ids.numpy()])
    assert set(next(found.evaluate("test")).targets) == {"label"}
    with pytest.raises(DataError, match=r"'teacher_logits'.*up to id 102, but has 102"):
        loader(extra={"teacher_logits": logits[1:]})


def test_mixing_keeps_labels_and_teachers_together():
    """With logits that are the one-hot label both targets must stay equal when mixed."""
    labels = load_data(DataConfig(source=SOURCE)).train.targets["label"]
    found = loader(
        extra={"teacher_logits": np.eye(4, dtype=np.float32)[labels]}, augment=(Mixup(),)
    )
    part = next(found.train(0)).micro_batches[0]
    assert part.targets["label"].shape == (16, 4)
    assert torch.equal(part.targets["label"], part.targets["teacher_logits"])
    with pytest.raises(DataError, match="can't blend target 'group'"):
        next(loader(extra={"group": labels}, augment=(Mixup(),)).train(0))


def test_splits_without_samples_are_refused_where_they_are_used():
    found = loader(split=SplitConfig(val=0, select=0), source=Synthetic(test_samples=0, size=8))
    assert len(list(found.train(0))) == 64
    with pytest.raises(DataError, match=r"val split has no samples.*raise data\.split\.val"):
        next(found.evaluate("val"))
    with pytest.raises(DataError, match="no test split"):
        next(found.evaluate("test"))
    with pytest.raises(DataError, match=r"unknown split 'valid'.*'val'"):
        next(found.evaluate("valid"))


def test_data_is_opened_once_a_process(monkeypatch):
    config = DataConfig(source=SOURCE)
    first = load_data(config)
    monkeypatch.setattr(memory, "open_source", None)
    assert load_data(DataConfig(source=SOURCE, augment=(Flip(),))) is first
    assert describe(config) is first.info


def test_description():
    info = describe(DataConfig(source=SOURCE))
    assert info.shape == (3, 8, 8)
    assert info.sizes == {"train": 88, "val": 10, "select": 5, "test": 11}
    assert info.classes == 4
    other = describe(DataConfig(source=SOURCE, split=SplitConfig(seed=1)))
    assert other.digest == info.digest
    assert other.split_digest != info.split_digest
    assert other.mean != info.mean


def test_reading_ahead_keeps_order_and_raises_and_ends():
    assert list(memory._ahead(iter(range(50)))) == list(range(50))

    def broken():
        yield 1
        raise DataError("broken")

    items = memory._ahead(broken())
    assert next(items) == 1
    with pytest.raises(DataError, match="broken"):
        next(items)
    before = set(threading.enumerate())
    endless = memory._ahead(itertools.count())
    assert next(endless) == 0
    (reading,) = set(threading.enumerate()) - before
    endless.close()
    assert not reading.is_alive()
