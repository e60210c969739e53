"""The loader for data sets larger than memory: Ray Data reads what the epoch plan wants.

Ray Data hands blocks to whoever is hungry, so its own distribution does not repeat. Here it only
carries out the plan: each rank asks for the rows that are its own, window by window in the plan's
order, and cuts its numbered micro-batches from them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import ray
import torch

from orchestrator.config.data import DataConfig, RayLoader
from orchestrator.data.batches import BatchMaker, stored
from orchestrator.data.cache import remember, source_key
from orchestrator.data.plan import EpochPlan, micro_batch_count, micro_batches, share
from orchestrator.data.shuffle import permutation
from orchestrator.data.split import digest, split
from orchestrator.data.stored import StoredSplit, open_stored
from orchestrator.data.types import Batch, DataInfo, GlobalBatch
from orchestrator.errors import DataError, suggest
from orchestrator.files import cache_root
from orchestrator.host import Worker
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_reader import Reader, Row
from orchestrator.seeding import SPLIT, derive

SAMPLED = 5_000
"""Images from which mean and standard deviation are estimated."""


class RayDataLoader:
    """A rank's loader over files. See `Loader`; a process without a cluster starts one.

    An unreadable image is left out of its micro-batch; `GlobalBatch.samples` still counts it,
    because only the rank that reads it knows. Each rank allows `max_corrupt` of them.

    Args:
        config: the loader's section.
        data: the section that it is part of.
        seed: the run's.
        batch_size: samples of a global batch.
        micro_batch: most samples of one forward pass; None for a rank's whole share.
        worker: this rank; every rank builds its loader at the same time.
        extra_targets: further targets of the source's training samples, by name; rows are ids.

    Raises:
        DataError: if the source is not one of files, or can't be read.
        ResourceError: if the cluster has no CPU left for reading.
    """

    def __init__(
        self,
        config: RayLoader,
        *,
        data: DataConfig,
        seed: int,
        batch_size: int,
        micro_batch: int | None,
        worker: Worker,
        extra_targets: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._worker = worker
        self._extra = dict(extra_targets or {})
        self._source = open_stored(data.source)
        self._ids = split(self._source.train.labels, data.split)
        _check_rows(self._extra, self._ids["train"])
        groups = _groups(self._source.train, self._ids["train"])
        self._plan = EpochPlan(groups, batch_size, seed, config.window)
        self._count = micro_batch_count(batch_size, micro_batch, worker.world_size)
        self._session = None if ray.is_initialized() else start_or_attach(cpus=_whole(config.cpus))
        try:
            max_corrupt = getattr(data.source, "max_corrupt", 0)
            self._reader = Reader(config, max_corrupt, worker.world_size)
            self.info = self._agreed(data)
            self._make = BatchMaker(data.augment, self.info, seed, worker.device)
        except BaseException:
            self.close()
            raise

    @property
    def steps_per_epoch(self) -> int:
        """See `Loader.steps_per_epoch`."""
        return self._plan.steps_per_epoch

    def train(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """See `Loader.train`. Windows before `start` are not read."""
        order, size = self._plan.order(epoch), self._plan.batch_size
        mine = share(self._count, self._worker.rank, self._worker.world_size)
        places = []
        for index in range(start, self.steps_per_epoch):
            end = min((index + 1) * size, len(order))
            cuts = micro_batches(np.arange(index * size, end), self._count)
            places.append([cuts[number] for number in mine])
        if not places:
            return
        flat = np.concatenate([place for batch in places for place in batch])
        ends = np.flatnonzero(np.diff(flat // self._plan.window)) + 1
        with closing(self._rows("train", np.split(order[flat], ends))) as rows:
            buffer = _Buffer(rows)
            for index, batch in enumerate(places, start=start):
                micro = tuple(
                    self._training_batch(buffer.take(order[place]), epoch, index, number)
                    for place, number in zip(batch, mine, strict=True)
                )
                samples = min(size, len(order) - index * size)
                yield GlobalBatch(epoch, index, samples, micro, tuple(mine))

    def evaluate(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        """See `Loader.evaluate`. A rank without samples gets one empty batch."""
        if not self.info.sizes.get(split):
            raise DataError(
                f"there are no samples in split {split!r}; {suggest(split, self._with_samples())}"
            )
        ids = np.arange(self.info.sizes["test"]) if split == "test" else self._ids[split]
        block = share(len(ids), self._worker.rank, self._worker.world_size)
        mine = ids[block.start : block.stop]
        starts = range(0, max(len(mine), 1), batch_size)
        with closing(self._rows(split, [mine])) as rows:
            buffer = _Buffer(rows)
            for start in starts:
                taken = buffer.take(mine[start : start + batch_size])
                yield self._make.evaluate(self._samples(split, taken))

    def close(self) -> None:
        """See `Loader.close`. Ends a cluster that was started for this loader."""
        if self._session:
            self._session.close()
            self._session = None

    def _with_samples(self) -> list[str]:
        return [name for name, size in self.info.sizes.items() if size]

    def _rows(self, split: str, portions: list[np.ndarray]) -> Generator[list[Row], None, None]:
        name, files = self._stored(split)
        image_bytes = math.prod(self.info.shape)
        return self._reader.read(name, files, portions, image_bytes)

    def _agreed(self, data: DataConfig) -> DataInfo:
        """Rank 0's description of the data, on every rank."""
        found = self._describe(data) if self._worker.is_main else None
        info = self._worker.broadcast(found)
        assert info is not None
        return info

    def _stored(self, split: str) -> tuple[str, StoredSplit]:
        """Where a split's samples lie: those of `val` and `select` are the source's `train`."""
        if split == "test":
            assert self._source.test is not None
            return "test", self._source.test
        return "train", self._source.train

    def _samples(self, split: str, rows: list[Row]) -> Batch:
        """Rows as samples on the CPU; those without an image are left out."""
        good = [(sample, image) for sample, image in rows if image is not None]
        ids = np.array([sample for sample, _ in good], np.int64)
        channels, height, width = self.info.shape
        images = np.zeros((len(good), height, width, channels), np.uint8)
        for place, (sample, image) in enumerate(good):
            if image.shape != images.shape[1:]:
                raise DataError(
                    f"images must be of one size, but sample {sample} of {split} is "
                    f"{image.shape[:2]} and others {images.shape[1:3]}; set data.source.size"
                )
            images[place] = image
        return stored(ids, {"image": images}, {"label": self._stored(split)[1].labels[ids]})

    def _training_batch(self, rows: list[Row], epoch: int, index: int, number: int) -> Batch:
        samples = self._samples("train", rows)
        for name, values in self._extra.items():
            samples.targets[name] = torch.from_numpy(values[samples.ids.numpy()])
        return self._make.train(samples, epoch, index, number)

    def _describe(self, data: DataConfig) -> DataInfo:
        """What the data look like; statistics are estimated once and then remembered."""
        source, ids = self._source, self._ids
        split_digest = digest(source.train.labels, ids)
        folder = cache_root() / "stored" / f"{data.source.type}-{source_key(data.source)[:20]}"
        folder.mkdir(parents=True, exist_ok=True)
        found = remember(
            folder / f"stats-{split_digest[:20]}.json", lambda: self._statistics(data.split.seed)
        )
        test = {} if source.test is None else {"test": len(source.test.labels)}
        return DataInfo(
            shape=tuple(found["shape"]),
            label_names=source.label_names,
            mean=tuple(found["mean"]),
            std=tuple(found["std"]),
            sizes={name: len(rows) for name, rows in ids.items()} | test,
            digest=source.digest,
            split_digest=split_digest,
            notes=tuple(found["notes"]),
        )

    def _statistics(self, seed: int) -> dict[str, Any]:
        """Shape, mean and deviation of at most `SAMPLED` training images.

        Whole groups are drawn, by the split's seed: single rows would read every row group.
        """
        groups = _groups(self._source.train, self._ids["train"])
        drawn: list[np.ndarray] = []
        for group in permutation(len(groups), derive(seed, SPLIT, SAMPLED)):
            if sum(map(len, drawn)) >= SAMPLED:
                break
            drawn.append(groups[group])
        ids = np.concatenate(drawn)[:SAMPLED]
        total = square = count = np.float64(0)
        shape: tuple[int, ...] = ()
        for rows in self._reader.read("train", self._source.train, [ids]):
            for _, image in rows:
                if image is None:
                    continue
                values = image.astype(np.float64) / 255
                shape = image.shape
                total = total + values.sum((0, 1))
                square = square + (values**2).sum((0, 1))
                count += values[..., 0].size
        if not shape:
            corrupt = "\n".join(self._reader.corrupt.values())
            raise DataError(f"none of the images can be read:\n{corrupt}")
        mean = total / count
        std = np.sqrt(np.maximum(square / count - mean**2, 0))
        std = np.where(std > 1e-6, std, 1.0)  # a channel of one value
        return {
            "shape": [shape[2], shape[0], shape[1]],
            "mean": mean.tolist(),
            "std": std.tolist(),
            "notes": [
                f"mean and deviation are estimated from {len(ids)} training images",
                *self._reader.corrupt.values(),
            ],
        }


class _Buffer:
    """Rows that were read before their micro-batch came: at most a window's and what follows."""

    def __init__(self, rows: Iterator[list[Row]]) -> None:
        self._rows = rows
        self._held: dict[int, np.ndarray | None] = {}

    def take(self, ids: np.ndarray) -> list[Row]:
        """The rows of these ids, in their order."""
        wanted = ids.tolist()
        while any(sample not in self._held for sample in wanted):
            self._held.update(next(self._rows))
        return [(sample, self._held.pop(sample)) for sample in wanted]


def _groups(files: StoredSplit, ids: np.ndarray) -> list[np.ndarray]:
    """Sorted ids, by the group in which they are stored."""
    ends = np.cumsum(files.groups)[:-1]
    groups = np.split(ids, np.searchsorted(ids, ends))
    return [group for group in groups if len(group)]


def _check_rows(targets: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
    for name, values in targets.items():
        if len(ids) and len(values) <= ids[-1]:
            raise DataError(
                f"target {name!r} must have a row for each training sample, up to id {ids[-1]}, "
                f"but has {len(values)}; it belongs to another data set"
            )


def _whole(cpus: float) -> int:
    return max(1, math.ceil(cpus))
