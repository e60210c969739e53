"""Checkpoints that exist whole or not at all.

Files are written into ``<step>.tmp-…``; each is hashed and forced to the disk; the manifest comes
last; then the folder is renamed to ``<step>``. So whenever the process or the machine dies, every
folder with a valid manifest is complete, and anything else does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import CheckpointError
from orchestrator.files import read_json, sync_file, sync_folder, write_json
from orchestrator.run_folder.status import utc_now

Notice = Callable[[str], None]
MANIFEST = "manifest.json"
_STEP = re.compile(r"\d+")


@dataclass(frozen=True)
class FileEntry:
    """What the manifest knows of one file."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest is valid.

    Attributes:
        metric: the monitored value at this step; None when it was not evaluated.
        meta: what the run needs beside the engine's files (epoch, best, counters, …).
        files: by path relative to the folder.
    """

    path: Path
    step: int
    metric: float | None
    meta: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def faults(self) -> list[str]:
        """Hashes every file and says what is wrong; nothing is when the list is empty."""
        found = _listed_files(self.path)
        faults = [f"{name} is not in the manifest" for name in sorted(found - set(self.files))]
        for name, entry in self.files.items():
            try:
                intact = _hash(self.path / name) == entry.sha256
            except OSError as error:
                faults.append(f"{name}: {error.strerror}")
            else:
                faults += [] if intact else [f"{name} differs from its sha256"]
        return faults


class Checkpoints:
    """The checkpoints in a folder, for reading; any number of processes may look.

    Args:
        folder: ``<run>/checkpoints``; need not exist.
        mode: whether the best metric is the largest or the smallest.
        notice: called with a sentence for every damaged checkpoint that is passed over.
    """

    def __init__(
        self, folder: Path, *, mode: Literal["max", "min"] = "max", notice: Notice | None = None
    ) -> None:
        self.folder, self.mode = folder, mode
        self._notice = notice or (lambda message: None)

    def valid(self) -> list[Checkpoint]:
        """Every checkpoint with a valid manifest and files of the right size, oldest first."""
        if not self.folder.is_dir():
            return []
        folders = [path for path in self.folder.iterdir() if _STEP.fullmatch(path.name)]
        read = (_read(path) for path in folders)
        return sorted((one for one in read if one), key=lambda one: one.step)

    def ranked(self) -> list[Checkpoint]:
        """Those with a metric, best first; of equals the earlier one."""
        sign = -1 if self.mode == "max" else 1
        scored = [
            (sign * one.metric, one.step, one) for one in self.valid() if one.metric is not None
        ]
        return [one for _, _, one in sorted(scored, key=lambda item: item[:2])]

    def latest(self) -> Checkpoint | None:
        """The newest one; its content is not hashed (see `latest_intact`)."""
        return next(reversed(self.valid()), None)

    def best(self) -> Checkpoint | None:
        """The best one; its content is not hashed (see `best_intact`)."""
        return next(iter(self.ranked()), None)

    def latest_intact(self) -> Checkpoint | None:
        """The newest one whose hashes hold; None when there are no checkpoints.

        Raises:
            CheckpointError: if there are some, all of them damaged.
        """
        return self._first_intact(self.valid()[::-1])

    def best_intact(self) -> Checkpoint | None:
        """The best one whose hashes hold; None when none has a metric.

        Raises:
            CheckpointError: if there are some, all of them damaged.
        """
        return self._first_intact(self.ranked())

    def _first_intact(self, candidates: list[Checkpoint]) -> Checkpoint | None:
        for one in candidates:
            faults = one.faults()
            if not faults:
                return one
            self._notice(f"checkpoint {one.step} is damaged and passed over: {'; '.join(faults)}")
        if candidates:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged; "
                "restore one from a copy, or start again with another name=…"
            )
        return None


class CheckpointStore(Checkpoints):
    """The one writer of a folder of checkpoints.

    On opening it removes what a killed process left half-written. Only the process that holds
    the run's lease may open it.

    Args:
        keep_last: newest checkpoints that stay, at least 1.
        keep_best: best checkpoints that stay beside them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        mode: Literal["max", "min"] = "max",
        notice: Notice | None = None,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise ValueError(
                "keep_last >= 1 and keep_best >= 0 must hold, "
                f"but got keep_last={keep_last}, keep_best={keep_best}"
            )
        super().__init__(folder, mode=mode, notice=notice)
        self.keep_last, self.keep_best = keep_last, keep_best
        folder.mkdir(parents=True, exist_ok=True)
        self._recover()

    def begin(self, step: int) -> Path:
        """Makes the folder that a checkpoint's files are written into, by any rank.

        Raises:
            CheckpointError: if it can't be made.
        """
        path = self.folder / f"{step}.tmp-{secrets.token_hex(4)}"
        try:
            path.mkdir()
        except OSError as error:
            raise self.failure(step, error) from error
        return path

    def commit(
        self, path: Path, *, meta: Mapping[str, Any] | None = None, metric: float | None = None
    ) -> Checkpoint:
        """Makes what was written into `path` a checkpoint, then removes those that may go.

        Args:
            path: from `begin`, with every rank's files closed.
            meta: a JSON value that `Checkpoint.meta` gives back.
            metric: the monitored value at this step; NaN counts as none.

        Raises:
            CheckpointError: if the disk is full or a file is gone; older ones are untouched.
        """
        step = int(path.name.partition(".")[0])
        try:
            _seal(path, step, dict(meta or {}), _number(metric))
            final = self._publish(path, step)
        except OSError as error:
            self.abort(path)
            raise self.failure(step, error) from error
        committed = _read(final)
        if committed is None:
            raise CheckpointError(
                f"{final} changed while it was written; nothing else may write it"
            )
        self._collect()
        return committed

    def abort(self, path: Path) -> None:
        """Removes what was written into `path`."""
        shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def save(
        self, step: int, *, meta: Mapping[str, Any] | None = None, metric: float | None = None
    ) -> Iterator[Path]:
        """`begin` and `commit` around a body that writes files; an error in it aborts.

        Raises:
            CheckpointError: if the body fails, as it does when the disk is full.
        """
        path = self.begin(step)
        try:
            yield path
        except Exception as error:
            # torch and safetensors report a full disk by errors of their own.
            self.abort(path)
            raise self.failure(step, error) from error
        except BaseException:
            self.abort(path)
            raise
        self.commit(path, meta=meta, metric=metric)

    def failure(self, step: int, error: BaseException | str) -> CheckpointError:
        """The error for a checkpoint that could not be written, with the way out."""
        latest = self.latest()
        left = f"checkpoint {latest.step} is untouched" if latest else "there is no earlier one"
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(self.folder).free / 2**20
            reason += f" ({free:,.0f} MiB free)"
        return CheckpointError(
            f"could not write checkpoint {step} in {self.folder}: {reason}; {left}. "
            "Make room (`orch runs prune`, or a lower checkpoint.keep_last), then add --resume"
        )

    def remove(self, checkpoint: Checkpoint) -> None:
        """Removes one checkpoint; killed half-way it is already none."""
        doomed = self.folder / f"{checkpoint.step}.tmp-{secrets.token_hex(4)}"
        checkpoint.path.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def _publish(self, path: Path, step: int) -> Path:
        final = self.folder / str(step)
        old = self.folder / f"{step}.old-{secrets.token_hex(4)}"
        replaced = final.exists()
        if replaced:
            final.rename(old)
        try:
            path.rename(final)
        except OSError:
            if replaced:
                old.rename(final)
            raise
        sync_folder(self.folder)
        if replaced:
            shutil.rmtree(old, ignore_errors=True)
        return final

    def _recover(self) -> None:
        for path in self.folder.glob("*.old-*"):
            # Killed between the two renames of a replacement: the old one is still the one.
            final = self.folder / path.name.partition(".")[0]
            if final.exists():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.rename(final)
        for path in self.folder.glob("*.tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        sync_folder(self.folder)

    def _collect(self) -> None:
        kept = {one.step for one in self.valid()[-self.keep_last :]}
        kept |= {one.step for one in self.ranked()[: self.keep_best]}
        for one in self.valid():
            if one.step not in kept:
                self.remove(one)


def _seal(path: Path, step: int, meta: dict[str, Any], metric: float | None) -> None:
    files = {}
    for name in sorted(_listed_files(path)):
        file = path / name
        files[name] = {"sha256": _hash(file), "size": file.stat().st_size}
        sync_file(file)
    for folder in {(path / name).parent for name in files} - {path}:
        sync_folder(folder)
    manifest = {"step": step, "metric": metric, "written": utc_now(), "meta": meta, "files": files}
    write_json(path / MANIFEST, {"format": 1, **manifest})


def _read(path: Path) -> Checkpoint | None:
    try:
        value = read_json(path / MANIFEST)
        files = {name: FileEntry(**entry) for name, entry in value["files"].items()}
        whole = value["step"] == int(path.name) and all(
            (path / name).stat().st_size == entry.size for name, entry in files.items()
        )
        return (
            Checkpoint(path, value["step"], value["metric"], value["meta"], files)
            if whole
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _listed_files(path: Path) -> set[str]:
    found = (file for file in path.rglob("*") if not file.is_dir())
    return {str(file.relative_to(path)) for file in found} - {MANIFEST}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(metric: float | None) -> float | None:
    return float(metric) if metric is not None and math.isfinite(metric) else None
