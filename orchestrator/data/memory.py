"""Data sets that fit on the disk of one machine: mapped arrays, and the loader over them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator.config.data import DataConfig
from orchestrator.config.data import MemoryLoader as MemoryLoaderConfig
from orchestrator.data.batches import BatchMaker, stored
from orchestrator.data.cache import CachedSource, open_source, remember
from orchestrator.data.plan import EpochPlan, micro_batch_count, micro_batches, share
from orchestrator.data.split import digest, split
from orchestrator.data.text.rows import LABEL, TARGET_TOKENS, TOKENS
from orchestrator.data.text.tokenizer import Lexicon
from orchestrator.data.types import SPLITS, Batch, DataInfo, GlobalBatch, Samples
from orchestrator.errors import DataError, UnknownNameError
from orchestrator.files import cache_root
from orchestrator.host import Worker

_MEMOISED = 4
_AHEAD = 2
"""Global batches that are prepared before a GPU asks for them."""


@dataclass(frozen=True)
class InMemoryData:
    """A split data set whose arrays are memory maps, shared by every process of a machine.

    Attributes:
        train: the source's training samples: `train`, `val` and `select` pick from them.
        test: the source's official test samples.
        ids: int64, sorted: the samples of each split, as rows of `train` or of `test`.
        numbers: of text, int64: what each number of the source's lexicon is in the vocabulary.
    """

    info: DataInfo
    train: Samples
    test: Samples | None
    ids: Mapping[str, np.ndarray]
    numbers: np.ndarray | None = None

    def split(self, name: str) -> tuple[Samples, np.ndarray]:
        """The samples that a split picks from, and its ids.

        Raises:
            DataError: if the split is unknown or has no samples.
        """
        if name not in SPLITS:
            raise DataError(str(UnknownNameError("split", name, SPLITS)))
        ids = self.ids.get(name)
        if ids is None:
            raise DataError("the source has no test split; use val, or give the source test files")
        if not len(ids):
            raise DataError(
                f"the {name} split has no samples (of {len(self.train)}); raise data.split.{name}"
            )
        samples = self.test if name == "test" else self.train
        assert samples is not None
        return samples, ids


_memory: dict[tuple[str, ...], InMemoryData] = {}
_memory_lock = threading.Lock()


def load_data(config: DataConfig) -> InMemoryData:
    """Maps and splits a data set. The last few are kept, so that warm trials open it once.

    Raises:
        DataError: if the source is missing, unreadable or does not fit.
    """
    key = (str(cache_root()), config.source.model_dump_json(), config.split.model_dump_json())
    with _memory_lock:
        if key not in _memory:
            _memory[key] = _load(config)
            for old in list(_memory)[:-_MEMOISED]:
                del _memory[old]
        return _memory[key]


def describe(config: DataConfig) -> DataInfo:
    """What a data set looks like once it is split, without a loader.

    Raises:
        DataError: as `load_data`.
    """
    return load_data(config).info


def _load(config: DataConfig) -> InMemoryData:
    cached = open_source(config.source)
    source = cached.data
    label = source.train.targets["label"]
    # Where each token has an answer there are no classes to keep in proportion.
    classes = label if label.ndim == 1 else np.zeros(len(label), np.int64)
    ids = split(classes, config.split)
    held = {name: ids[name] for name in ("train", "val", "select")}
    split_digest = digest(label, held)
    if source.test is not None:
        ids["test"] = np.arange(len(source.test), dtype=np.int64)
    about = {
        "label_names": source.label_names,
        "sizes": {name: len(rows) for name, rows in ids.items()},
        "digest": cached.digest,
        "split_digest": split_digest,
        "notes": source.notes,
    }
    numbers = None
    if source.lexicon is None:
        info = _image_info(cached, ids["train"], about)
    else:
        info, numbers = _text_info(cached, source.lexicon, ids["train"], about)
    return InMemoryData(info, source.train, source.test, ids, numbers)


def _image_info(cached: CachedSource, train: np.ndarray, about: dict[str, Any]) -> DataInfo:
    images = cached.data.train.inputs["image"]
    path = cached.folder / f"stats-{about['split_digest'][:20]}.json"
    mean, std = remember(path, lambda: statistics(images, train))
    _, height, width, channels = images.shape
    return DataInfo(shape=(channels, height, width), mean=tuple(mean), std=tuple(std), **about)


def _text_info(
    cached: CachedSource, lexicon: Lexicon, train: np.ndarray, about: dict[str, Any]
) -> tuple[DataInfo, np.ndarray]:
    """What a text looks like, and the vocabulary numbers of its lexicon."""
    samples = cached.data.train
    path = cached.folder / f"vocabulary-{about['split_digest'][:20]}.json"
    chosen = remember(path, lambda: lexicon.choose(count_tokens(samples, lexicon, train)))
    tokenizer, numbers = lexicon.restrict(chosen)
    shape = tuple(array.shape[1] for array in samples.inputs.values())
    return DataInfo(shape=shape, mean=(), std=(), tokenizer=tokenizer, **about), numbers


def count_tokens(samples: Samples, lexicon: Lexicon, ids: np.ndarray) -> np.ndarray:
    """How often each token of a lexicon occurs in the texts, and target texts, of the rows `ids`.

    Returns:
        int64[len(lexicon.tokenizer)].
    """
    size = len(lexicon.tokenizer)
    arrays = [samples.inputs[TOKENS]]
    if TARGET_TOKENS in samples.inputs:
        arrays.append(samples.targets[LABEL])
    counts = np.zeros(size, np.int64)
    for array in arrays:
        for start in range(0, len(ids), 1024):
            part = array[ids[start : start + 1024]]
            counts += np.bincount(part.ravel(), minlength=size)
    return counts


def statistics(images: np.ndarray, ids: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels scaled to 0..1.

    From integer counts, so that the result does not depend on the order of summation. A channel
    of one value gets the deviation 1.

    Args:
        images: uint8[N, H, W, C].
        ids: the rows to read; without any the result is 0 and 1.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(ids), 1024):
        part = images[ids[start : start + 1024]]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    total = np.maximum(counts.sum(1), 1)
    mean = (counts @ values) / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    std = np.sqrt(variance)
    return mean.tolist(), np.where(std > 0, std, 1.0).tolist()


def build_loader(
    config: MemoryLoaderConfig,
    *,
    data: DataConfig,
    seed: int,
    batch_size: int,
    micro_batch: int | None,
    worker: Worker,
    extra_targets: Mapping[str, np.ndarray] | None = None,
) -> MemoryLoader:
    """Builds the loader of `data.loader.type=memory`. See `MemoryLoader`."""
    found = load_data(data)
    maker = BatchMaker(data.augment, found.info, seed, worker.device)
    plan = EpochPlan([found.ids["train"]], batch_size, seed)
    count = micro_batch_count(batch_size, micro_batch, worker.world_size)
    return MemoryLoader(found, plan, count, maker, worker, extra_targets or {})


class MemoryLoader:
    """A rank's loader over mapped arrays. See `types.Loader`.

    Args:
        data: what to load.
        plan: which samples form which batch.
        count: micro-batches of a global batch, over all ranks.
        maker: augments and normalises.
        worker: this rank.
        extra_targets: further targets of the source's training samples, by name; rows are ids.

    Raises:
        DataError: if an extra target has too few rows.
    """

    def __init__(
        self,
        data: InMemoryData,
        plan: EpochPlan,
        count: int,
        maker: BatchMaker,
        worker: Worker,
        extra_targets: Mapping[str, np.ndarray],
    ) -> None:
        for name, rows in extra_targets.items():
            last = int(data.ids["train"].max(initial=-1))
            if len(rows) <= last:
                raise DataError(
                    f"target {name!r} must have a row for each training sample up to id {last}, "
                    f"but has {len(rows)} rows; it belongs to another data set"
                )
        self.info = data.info
        self._data, self._plan, self._maker, self._worker = data, plan, maker, worker
        self._count = count
        self._mine = share(count, worker.rank, worker.world_size)
        self._targets = {**data.train.targets, **extra_targets}
        self._pinned = worker.device.type == "cuda"

    @property
    def steps_per_epoch(self) -> int:
        """See `Loader.steps_per_epoch`."""
        return self._plan.steps_per_epoch

    def train(self, epoch: int, start: int = 0) -> Iterator[GlobalBatch]:
        """See `Loader.train`.

        For a GPU, samples are gathered into pinned memory by a thread of its own, so that copies
        overlap with computing. On a CPU such a thread would only take turns with training.
        """
        gathered = self._gathered(epoch, start)
        steps = _ahead(gathered) if self._pinned else gathered
        for index, (samples, parts) in enumerate(steps, start=start):
            made = tuple(
                self._maker.train(part, epoch, index, number)
                for part, number in zip(parts, self._mine, strict=True)
            )
            yield GlobalBatch(epoch, index, samples, made, tuple(self._mine))

    def evaluate(self, split: str, batch_size: int = 512) -> Iterator[Batch]:
        """See `Loader.evaluate`."""
        samples, ids = self._data.split(split)
        block = share(len(ids), self._worker.rank, self._worker.world_size)
        mine = ids[block.start : block.stop]
        for start in range(0, max(len(mine), 1), batch_size):
            rows = mine[start : start + batch_size]
            yield self._maker.evaluate(self._gather(samples.inputs, samples.targets, rows))

    def close(self) -> None:
        """See `Loader.close`. Threads end with the iterators that they feed."""

    def _gathered(self, epoch: int, start: int) -> Iterator[tuple[int, list[Batch]]]:
        """Samples of each global batch over all ranks, and this rank's as they are stored."""
        for ids in self._plan.global_batches(epoch)[start:]:
            cuts = micro_batches(ids, self._count)
            inputs = self._data.train.inputs
            parts = [self._gather(inputs, self._targets, cuts[number]) for number in self._mine]
            yield len(ids), parts

    def _gather(
        self,
        inputs: Mapping[str, np.ndarray],
        targets: Mapping[str, np.ndarray],
        rows: np.ndarray,
    ) -> Batch:
        batch = stored(
            rows,
            {name: self._taken(array, rows) for name, array in inputs.items()},
            {name: self._taken(array, rows) for name, array in targets.items()},
        )
        return _pinned(batch) if self._pinned else batch

    def _taken(self, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Some rows; the numbers of a text's lexicon, which are int32, as the vocabulary's."""
        taken: np.ndarray = array[rows]
        numbers = self._data.numbers
        return taken if numbers is None or taken.dtype != np.int32 else numbers[taken]


def _pinned(batch: Batch) -> Batch:
    return Batch(
        batch.ids.pin_memory(),
        {name: tensor.pin_memory() for name, tensor in batch.inputs.items()},
        {name: tensor.pin_memory() for name, tensor in batch.targets.items()},
    )


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, fetched by a thread that stays `_AHEAD` of them in front."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(_AHEAD)
    closed = threading.Event()
    end = object()

    def put(item: Any, error: BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            if all(put(item, None) for item in items):
                put(end, None)
        except BaseException as error:
            put(end, error)

    thread = threading.Thread(target=fetch, name="orch-data", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        closed.set()
        thread.join()
