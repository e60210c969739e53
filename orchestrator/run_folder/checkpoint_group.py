"""One checkpoint that every rank of a group writes files of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from orchestrator.errors import CheckpointError
from orchestrator.run_folder.checkpoint import CheckpointStore

T = TypeVar("T")


class Group(Protocol):
    """What is needed of a rank's group; `orchestrator.host.Worker` has it."""

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        ...

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value on rank 0, None elsewhere."""
        ...


def save_together(
    store: CheckpointStore | None,
    group: Group,
    step: int,
    write: Callable[[Path], None],
    *,
    meta: Mapping[str, Any] | None = None,
    metric: float | None = None,
) -> None:
    """Saves a checkpoint of every rank's files. Called by every rank; none is left waiting.

    Args:
        store: rank 0's; None elsewhere.
        write: puts this rank's files into the folder it is given.
        meta, metric: as for `CheckpointStore.commit`; rank 0's count.

    Raises:
        CheckpointError: on every rank, if any of them failed.
    """
    path, error = group.broadcast(_begin(store, step))
    if path is not None:
        failed = _write(write, path)
        errors = group.gather(None if failed is None else str(failed) or repr(failed))
        if store is not None:
            error = _conclude(store, path, step, errors or [], meta, metric)
        error = group.broadcast(error)
        if error is not None:
            raise CheckpointError(error) from failed
    if error is not None:
        raise CheckpointError(error)


def _begin(store: CheckpointStore | None, step: int) -> tuple[Path | None, str | None]:
    try:
        return (store.begin(step) if store else None), None
    except CheckpointError as error:
        return None, str(error)


def _write(write: Callable[[Path], None], path: Path) -> Exception | None:
    try:
        write(path)
    except Exception as error:
        return error
    return None


def _conclude(
    store: CheckpointStore,
    path: Path,
    step: int,
    errors: list[str | None],
    meta: Mapping[str, Any] | None,
    metric: float | None,
) -> str | None:
    failed = next((error for error in errors if error is not None), None)
    try:
        if failed is None:
            store.commit(path, meta=meta, metric=metric)
            return None
    except CheckpointError as error:
        return str(error)
    store.abort(path)
    return str(store.failure(step, failed))
