"""Reads stored samples through Ray Data: tasks read and decode, this process takes the pixels."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ExecutionResources, TaskPoolStrategy
from ray.exceptions import GetTimeoutError

from orchestrator.config.data import RayLoader
from orchestrator.data.stored import Piece, StoredSplit
from orchestrator.errors import DataError, ResourceError

_log = logging.getLogger(__name__)
PATIENCE = 60.0
"""Seconds in which a CPU must become free for reading."""
LEAST_AHEAD = 64 * 2**20
"""Bytes that may always be read ahead."""

Row = tuple[int, np.ndarray | None]
"""A sample's id and its image, uint8[H, W, C]; None where it can't be read."""


class Reader:
    """Streams samples of one rank, in order.

    Args:
        config: the loader's section.
        max_corrupt: how many images may be unreadable before reading stops.
        ranks: how many ranks read at the same time; they share `config.cpus`.

    Raises:
        ResourceError: if the cluster has no CPU for reading, at once or within `PATIENCE`.
    """

    def __init__(self, config: RayLoader, max_corrupt: int, ranks: int) -> None:
        self._config, self._ranks, self._max_corrupt = config, ranks, max_corrupt
        self.corrupt: dict[tuple[str, int], str] = {}
        """What could not be read and why, by split and id."""
        self._cpus = min(config.cpus, 1.0)
        # Ray Data reports every execution; orch's own output belongs to the run.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        if self._cpus:
            _await_cpu(self._cpus)

    def read(
        self, name: str, stored: StoredSplit, portions: Iterable[np.ndarray], image_bytes: int = 0
    ) -> Generator[list[Row], None, None]:
        """Reads portion by portion; within each by id. Closing the iterator ends the reading.

        Args:
            name: of the split, for messages.
            portions: int64 ids; a portion is what is shuffled together.
            image_bytes: of one image, which bounds how far reading runs ahead.

        Raises:
            DataError: if a file is damaged, images differ in size, or too many are unreadable.
        """
        wanted = [np.sort(ids) for ids in portions if len(ids)]
        pieces = [piece for ids in wanted for piece in stored.pieces(ids)]
        if not pieces:
            return
        most = max(map(len, wanted)) * (self._config.prefetch + 1) * image_bytes
        with closing(_blocks(pieces, self._cpus, self._tasks(), max(most, LEAST_AHEAD))) as blocks:
            for block in blocks:
                if block["error"][0]:
                    raise DataError(str(block["error"][0]))
                yield self._rows(name, block)

    def _tasks(self) -> int:
        return max(1, math.floor(self._config.cpus / self._ranks))

    def _rows(self, name: str, block: dict[str, Any]) -> list[Row]:
        # Copied, because a view would hold the whole block in Ray's memory.
        images = np.array(block["image"], np.uint8)
        rows: list[Row] = []
        for sample, image, note in zip(block["id"].tolist(), images, block["note"], strict=True):
            rows.append((sample, None if note else image))
            if note and (name, sample) not in self.corrupt:
                _log.warning("left out, because it can't be read: %s", note)
                self.corrupt[name, sample] = str(note)
        if len(self.corrupt) > self._max_corrupt:
            raise DataError(
                f"more than data.source.max_corrupt={self._max_corrupt} images can't be read:\n"
                + "\n".join(self.corrupt.values())
                + "\nMend or remove them, or raise max_corrupt"
            )
        return rows


def _blocks(
    pieces: list[Piece], cpus: float, tasks: int, ahead: int
) -> Generator[dict[str, Any], None, None]:
    """Carries the reading out: one task a piece, results in the order of pieces."""
    items = [{"piece": pickle.dumps(piece)} for piece in pieces]
    data = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _read, batch_size=1, num_cpus=cpus, compute=TaskPoolStrategy(size=tasks)
    )
    # A data set has a context of its own: what is set here changes nothing elsewhere.
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    options = data.context.execution_options
    options.preserve_order = True
    options.resource_limits = ExecutionResources.for_limits(object_store_memory=ahead)
    yield from data.iter_batches(batch_size=None, batch_format="numpy")


def _read(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What a task does. An error that is the user's travels as a value, not as a traceback."""
    for pickled in batch["piece"]:
        try:
            for pixels in pickle.loads(pickled).read():
                yield {
                    "id": pixels.ids,
                    "image": pixels.images,
                    "note": np.array(pixels.notes, object),
                    "error": np.array([""] * len(pixels.ids), object),
                }
        except (DataError, OSError) as error:
            yield {
                "id": np.zeros(1, np.int64),
                "image": np.zeros((1, 1, 1, 1), np.uint8),
                "note": np.array([""], object),
                "error": np.array([str(error)], object),
            }


def _await_cpu(cpus: float) -> None:
    """Runs a task that needs what a reading task needs.

    Raises:
        ResourceError: if it can't be run.
    """
    there = ray.cluster_resources().get("CPU", 0.0)
    # Spread, so that the task is not confined to the worker's own placement group.
    probe = ray.remote(num_cpus=cpus, scheduling_strategy="SPREAD")(_nothing).remote()
    try:
        ray.get(probe, timeout=PATIENCE if there >= cpus else 0)
    except GetTimeoutError:
        ray.cancel(probe, force=True)
        free = ray.available_resources().get("CPU", 0.0)
        raise ResourceError(
            f"data.loader.cpus: reading needs {cpus:g} CPU, but of the cluster's {there:g} "
            f"{free:g} are free; lower scale.cpus, scale.workers or the trials at once, or set "
            "data.loader.cpus=0 to read on the cores that train"
        ) from None


def _nothing() -> None:
    return None
