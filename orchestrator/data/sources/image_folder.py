"""Images in one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.config.data import ImageFolder
from orchestrator.data.sources.images import corrupt_notes, decode_all
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg"))


def load(config: ImageFolder, cache: Path) -> SourceData:
    """Reads `path/train` and `path/test`, or `path` alone when it holds the classes itself.

    Raises:
        DataError: if folders are missing or empty, there is one class only, `test` has a class
            that `train` lacks, or too many images can't be read.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError(f"data.source.path={config.path} is not a folder")
    train = root / "train" if (root / "train").is_dir() else root
    names = class_names(train)
    samples, notes = _read(train, names, config)
    if train == root or not (root / "test").is_dir():
        return SourceData(samples, None, names, notes)
    check_test_classes(root / "test", train, names)
    test, more = _read(root / "test", names, config)
    return SourceData(samples, test, names, notes + more)


def check_test_classes(test: Path, train: Path, names: tuple[str, ...]) -> None:
    """Refuses a test split with classes that training has not seen."""
    unknown = sorted(set(class_names(test)) - set(names))
    if unknown:
        raise DataError(f"{test} has classes that {train} lacks: {', '.join(unknown)}")


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders below a split's folder, sorted; their order numbers the classes."""
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )
    if not names:
        raise DataError(f"{folder} must hold one folder of images per class, but has no folders")
    return tuple(names)


def _read(
    folder: Path, names: tuple[str, ...], config: ImageFolder
) -> tuple[Samples, tuple[str, ...]]:
    files, labels = list_files(folder, names)
    decoded = decode_all(
        files,
        lambda number: str(files[number]),
        size=config.size,
        channels=config.channels,
        max_corrupt=config.max_corrupt,
    )
    samples = Samples({"image": decoded.images}, {"label": labels[decoded.kept]})
    return samples, corrupt_notes(folder.name, decoded)


def list_files(folder: Path, names: tuple[str, ...]) -> tuple[list[Path], np.ndarray]:
    """Every image below a split's folder, in sorted order, and int64 labels."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        found = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not found:
            raise DataError(
                f"class folder {folder / name} has no image ({', '.join(sorted(SUFFIXES))}); "
                "add some or remove it"
            )
        files += found
        labels += [label] * len(found)
    return files, np.array(labels, np.int64)
