"""Decoded sources on disk: checksummed arrays that every process maps instead of copying.

<cache root>/files/…                     downloads of sources
<cache root>/sources/<type>-<key>/       one decoded source
    manifest.json                        written last; a folder without it does not exist
    train.inputs.image.npy, train.targets.label.npy, test.…
    stats-<split digest>.json            mean and standard deviation of a train split's images
    vocabulary-<split digest>.json       which tokens a train split knows
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.config.base import Part, build, find, resolve
from orchestrator.data.text.tokenizer import Lexicon
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError
from orchestrator.files import cache_root, locked, read_json, sync_folder, write_json

FORMAT = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CachedSource:
    """A source whose arrays are read-only memory maps.

    Attributes:
        digest: sha256 of the arrays' content; the same wherever the source decodes the same.
        folder: where the arrays lie.
    """

    data: SourceData
    digest: str
    folder: Path


class _DamagedError(Exception):
    """A cache folder whose files are not what its manifest says."""


def open_source(config: Part, *, verify: bool = False) -> CachedSource:
    """Maps a source's arrays, after decoding it once for all processes and runs.

    Safe to call from many processes at once: one builds, the others wait. A damaged folder is
    reported in the log and built again.

    Args:
        verify: read every byte and compare checksums, instead of sizes, shapes and types only.

    Raises:
        DataError: if the source is missing, unreadable or does not make sense, or the cache
            can't be written.
    """
    folder = _folder(config)
    with contextlib.suppress(OSError, _DamagedError):
        return _read(folder, verify)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f".{folder.name}.lock")):
            return _read_or_build(config, folder, verify)
    except OSError as error:
        raise DataError(
            f"the cache folder {folder} can't be used ({error}); set ORCH_CACHE to a folder "
            "that can be written and has room"
        ) from error


def is_cached(config: Part) -> bool:
    """Whether a source lies decoded on this machine, so that opening it takes no time."""
    return _folder(config).is_dir()


def _folder(config: Part) -> Path:
    return cache_root() / "sources" / f"{config.type}-{source_key(config)[:20]}"


def source_key(config: Part) -> str:
    """sha256 of everything that decides a source's content.

    That is its section, the code that loads it, and name, size and time of each file below the
    section's `path` or `root`. Plugins that read files should use one of these names.
    """
    target = find("source", config.type).target
    load = resolve(target) if isinstance(target, str) else target
    with contextlib.suppress(TypeError, OSError):
        load = Path(str(inspect.getsourcefile(inspect.unwrap(load)))).read_text()
    named = (getattr(config, name, None) for name in ("path", "root"))
    files = [_listing(Path(path).expanduser()) for path in named if isinstance(path, str)]
    text = json.dumps([FORMAT, config.model_dump(mode="json"), str(load), files])
    return hashlib.sha256(text.encode()).hexdigest()


def remember(path: Path, compute: Callable[[], Any]) -> Any:
    """A small JSON value that is computed once and then read from `path`."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(path)
    value = compute()
    with contextlib.suppress(OSError):  # a cache that may only be read still works
        write_json(path, value)
    return value


def _listing(path: Path) -> list[Any]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found: list[Any] = [str(path.absolute())]
    for file in files:
        with contextlib.suppress(OSError):
            about = file.stat()
            found.append([str(file.relative_to(path)), about.st_size, about.st_mtime_ns])
    return found


def _read_or_build(config: Part, folder: Path, verify: bool) -> CachedSource:
    try:
        return _read(folder, verify)
    except FileNotFoundError:
        pass
    except _DamagedError as fault:
        _log.warning("the cached data in %s is damaged (%s); it is built again", folder, fault)
    try:
        data: SourceData = build("source", config, cache=cache_root())
    except OSError as error:
        raise DataError(f"data.source.type={config.type} can't be read: {error}") from error
    check_source(data, config.type)
    _write(folder, data)
    return _read(folder, verify=True)


def _read(folder: Path, verify: bool) -> CachedSource:
    try:
        manifest = read_json(folder / "manifest.json")
        arrays = {
            name: _map(folder / f"{name}.npy", entry, verify)
            for name, entry in manifest["arrays"].items()
        }
        splits = {name.partition(".")[0] for name in arrays}
        train, test = (_samples(arrays, split) for split in ("train", "test"))
        lexicon = manifest.get("lexicon")
        data = SourceData(
            train,
            test if "test" in splits else None,
            tuple(manifest["label_names"]),
            tuple(manifest["notes"]),
            lexicon and Lexicon.from_json(lexicon),
        )
        return CachedSource(data, manifest["digest"], folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"manifest.json: {error!r}") from error


def _map(path: Path, entry: Mapping[str, Any], verify: bool) -> np.ndarray:
    # A map that reaches beyond a truncated file kills the process (SIGBUS), hence the size.
    if not path.exists() or path.stat().st_size != entry["size"]:
        raise _DamagedError(f"{path.name} is missing or not {entry['size']} bytes long")
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise _DamagedError(f"{path.name}: {error}") from error
    if array.dtype.str != entry["dtype"] or list(array.shape) != entry["shape"]:
        raise _DamagedError(f"{path.name} holds {array.dtype} {array.shape}")
    if verify and _hash(array) != entry["sha256"]:
        raise _DamagedError(f"{path.name} does not match its checksum")
    return array.view(np.ndarray)  # np.memmap itself is slower to index


def _samples(arrays: Mapping[str, np.ndarray], split: str) -> Samples:
    def pick(role: str) -> dict[str, np.ndarray]:
        start = f"{split}.{role}."
        return {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}

    return Samples(pick("inputs"), pick("targets"))


def _write(folder: Path, data: SourceData) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)  # of a process that died: we hold the lock
    work = folder.with_name(f".{folder.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    work.mkdir()
    try:
        _write_arrays(work, data)
        if folder.exists():
            folder.rename(work / "old")
        work.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(folder / "old", ignore_errors=True)


def _write_arrays(work: Path, data: SourceData) -> None:
    entries: dict[str, Any] = {}
    for name, array in _flat(data):
        path = work / f"{name}.npy"
        with path.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        entries[name] = {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "size": path.stat().st_size,
            "sha256": _hash(array),
        }
    content = {name: {**entry, "size": None} for name, entry in sorted(entries.items())}
    text = {} if data.lexicon is None else {"lexicon": data.lexicon.to_json()}
    content |= text  # numbers mean nothing without their tokens
    manifest = text | {
        "format": FORMAT,
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        "label_names": list(data.label_names),
        "notes": list(data.notes),
        "arrays": entries,
    }
    write_json(work / "manifest.json", manifest)


def _flat(data: SourceData) -> Iterator[tuple[str, np.ndarray]]:
    for split, samples in (("train", data.train), ("test", data.test)):
        if samples is not None:
            for role, arrays in (("inputs", samples.inputs), ("targets", samples.targets)):
                for name, array in arrays.items():
                    yield f"{split}.{role}.{name}", np.ascontiguousarray(array)


def _hash(array: np.ndarray) -> str:
    flat = array.reshape(-1).view(np.uint8)
    return hashlib.sha256(flat.data).hexdigest()


def check_source(data: SourceData, name: str) -> None:
    """Refuses a source that the rest could not work with.

    Raises:
        DataError: naming the split, the rule and what was found.
    """
    classes = len(data.label_names)
    answers_tokens = data.lexicon is not None and not classes
    if classes < 2 and not answers_tokens:
        raise DataError(f"source {name}: at least two classes are needed, but it has {classes}")
    for split, samples in (("train", data.train), ("test", data.test)):
        if samples is not None:
            for problem in _problems(samples, data):
                raise DataError(f"source {name}, {split} samples: {problem}")


def _problems(samples: Samples, data: SourceData) -> Iterator[str]:
    image, label = samples.inputs.get("image"), samples.targets.get("label")
    classes = len(data.label_names)
    if data.lexicon is not None:
        yield from _text_problems(samples, data.lexicon, answers_tokens=not classes)
        if not classes:
            return
    elif image is None or image.dtype != np.uint8 or image.ndim != 4:
        found = None if image is None else f"{image.dtype} of shape {image.shape}"
        yield f"inputs['image'] must be uint8 of shape (N, H, W, C), but it is {found}"
        return
    if label is None or label.dtype != np.int64 or label.ndim != 1:
        found = None if label is None else f"{label.dtype} of shape {label.shape}"
        yield f"targets['label'] must be int64 of shape (N,), but it is {found}"
        return
    for key, array in {**samples.inputs, **samples.targets}.items():
        if len(array) != len(label):
            yield f"{key!r} has {len(array)} rows, but there are {len(label)} labels"
    if not len(label):
        yield "there are none"
    elif label.min() < 0 or label.max() >= classes:
        yield f"labels must lie in 0..{classes - 1}, but reach {label.min()}..{label.max()}"


def _text_problems(samples: Samples, lexicon: Lexicon, *, answers_tokens: bool) -> Iterator[str]:
    arrays = dict(samples.inputs) | (dict(samples.targets) if answers_tokens else {})
    if "tokens" not in arrays or (answers_tokens and "label" not in arrays):
        yield "inputs['tokens'] and targets['label'] must be there"
        return
    for key, array in arrays.items():
        if array.dtype != np.int32 or array.ndim != 2:
            found = f"{array.dtype} of shape {array.shape}"
            yield f"{key!r} must be int32 of shape (N, T), but it is {found}"
        elif not array.size:
            yield "there are none"
        elif array.min() < 0 or array.max() >= len(lexicon.tokenizer):
            yield (
                f"{key!r} must lie in 0..{len(lexicon.tokenizer) - 1}, "
                f"but reaches {array.min()}..{array.max()}"
            )
