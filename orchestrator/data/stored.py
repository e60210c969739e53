"""Sources that stay on disk: where each sample lies, and how to read some of them.

For data sets larger than memory. Labels are read at once, because splits depend on them; images
are read in pieces, each by whoever needs it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from orchestrator.config.base import Part
from orchestrator.config.data import ImageFolder, Parquet
from orchestrator.data.sources import image_folder, parquet
from orchestrator.data.sources.images import decode
from orchestrator.errors import DataError

CHUNK = 256
"""Most images that are decoded before they are handed on."""
FILES_PER_GROUP = 8
"""Image files that count as stored together: few, because neighbours are of one class."""


@dataclass(frozen=True)
class Pixels:
    """Images that were read.

    Attributes:
        ids: int64[N], each sample's place in its split's files.
        images: uint8[N, H, W, C]; black where a note says why an image can't be read.
        notes: one string per image, empty where all is well.
    """

    ids: np.ndarray
    images: np.ndarray
    notes: tuple[str, ...]


class Piece(ABC):
    """Samples that are read together, with all it takes to read them elsewhere."""

    @abstractmethod
    def read(self) -> Iterator[Pixels]:
        """The samples in order, at most `CHUNK` at a time.

        Raises:
            DataError: if a file is missing or damaged as a whole.
        """


class StoredSplit(ABC):
    """The files of one of the source's own splits, `train` or `test`.

    Attributes:
        labels: int64[N].
        groups: how many samples are stored together, in the order of ids.
    """

    labels: np.ndarray
    groups: list[int]

    @abstractmethod
    def pieces(self, ids: np.ndarray) -> Iterator[Piece]:
        """Pieces that read sorted ids, in order, each file or row group once."""


@dataclass(frozen=True)
class StoredSource:
    """A source on disk.

    Attributes:
        digest: sha256 of what tells its content without reading it: names, sizes, row groups
            and labels.
    """

    train: StoredSplit
    test: StoredSplit | None
    label_names: tuple[str, ...]
    digest: str


def open_stored(config: Part) -> StoredSource:
    """Lists a source's files and reads its labels.

    Raises:
        DataError: if the source can't stay on disk, or its files are missing or don't fit.
    """
    if isinstance(config, ImageFolder):
        return _open_folder(config)
    if isinstance(config, Parquet):
        return _open_parquet(config)
    raise DataError(
        "data.loader.type=ray reads sources of type image_folder and parquet, but data.source."
        f"type is {config.type}; set data.loader.type=memory"
    )


# --- image files ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderPiece(Piece):
    """Image files."""

    ids: np.ndarray
    files: tuple[Path, ...]
    config: ImageFolder

    def read(self) -> Iterator[Pixels]:
        """See `Piece.read`."""
        yield _decoded(
            self.ids,
            self.files,
            lambda n: str(self.files[n]),
            self.config.size,
            self.config.channels,
        )


class FolderSplit(StoredSplit):
    """One folder of image files per class."""

    def __init__(self, folder: Path, names: tuple[str, ...], config: ImageFolder) -> None:
        self._config = config
        self.files, self.labels = image_folder.list_files(folder, names)
        full, rest = divmod(len(self.files), FILES_PER_GROUP)
        self.groups = [FILES_PER_GROUP] * full + [rest] * (rest > 0)

    def pieces(self, ids: np.ndarray) -> Iterator[Piece]:
        """See `StoredSplit.pieces`."""
        for start in range(0, len(ids), CHUNK):
            chosen = ids[start : start + CHUNK]
            yield FolderPiece(chosen, tuple(self.files[n] for n in chosen), self._config)


def _open_folder(config: ImageFolder) -> StoredSource:
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError(f"data.source.path={config.path} is not a folder")
    has_train = (root / "train").is_dir()
    train_folder = root / "train" if has_train else root
    names = image_folder.class_names(train_folder)
    train = FolderSplit(train_folder, names, config)
    test = None
    if has_train and (root / "test").is_dir():
        image_folder.check_test_classes(root / "test", train_folder, names)
        test = FolderSplit(root / "test", names, config)
    files = [*train.files, *(test.files if test else ())]
    listing = [f"{file.relative_to(root)}:{file.stat().st_size}" for file in files]
    return StoredSource(train, test, names, _digest(listing, train, test))


# --- parquet -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParquetPiece(Piece):
    """Rows of one row group."""

    ids: np.ndarray
    rows: np.ndarray
    file: Path
    row_group: int
    config: Parquet

    def read(self) -> Iterator[Pixels]:
        """See `Piece.read`."""
        try:
            with pq.ParquetFile(self.file) as file:
                table = file.read_row_group(self.row_group, columns=[self.config.image])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.file}, row group {self.row_group}: {error}") from error
        for start in range(0, len(self.rows), CHUNK):
            part = slice(start, start + CHUNK)
            yield self._pixels(self.ids[part], self.rows[part], table[self.config.image])

    def _pixels(self, ids: np.ndarray, rows: np.ndarray, column: Any) -> Pixels:
        column = column.take(pa.array(rows))
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
            images = parquet.array_images(column, self.config)
            return Pixels(ids, images, ("",) * len(ids))

        def name(place: int) -> str:
            return f"{self.file}, row {rows[place]} of row group {self.row_group}"

        return _decoded(ids, column.to_pylist(), name, self.config.size, self.config.channels)


class ParquetSplit(StoredSplit):
    """Parquet files of one split, in the order of their names."""

    def __init__(self, path: Path, config: Parquet, names: tuple[str, ...] | None = None) -> None:
        self._config = config
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        self._places: list[tuple[Path, int]] = []
        self.groups = []
        table = parquet.read_table(path, config, columns=[config.label])
        for file in files:
            footer = pq.read_metadata(file)
            for number in range(footer.num_row_groups):
                self._places.append((file, number))
                self.groups.append(footer.row_group(number).num_rows)
        self.names = names or parquet.label_names(table, config)
        self.labels = parquet.label_numbers(table, self.names, config)
        self._starts = np.concatenate([[0], np.cumsum(self.groups)])

    @property
    def listing(self) -> list[str]:
        """Names and row groups, for the digest."""
        return [
            f"{file.name}:{number}:{rows}"
            for (file, number), rows in zip(self._places, self.groups, strict=True)
        ]

    def pieces(self, ids: np.ndarray) -> Iterator[Piece]:
        """See `StoredSplit.pieces`."""
        group_of = np.searchsorted(self._starts, ids, side="right") - 1
        for group in np.unique(group_of):
            chosen = ids[group_of == group]
            file, number = self._places[group]
            yield ParquetPiece(chosen, chosen - self._starts[group], file, number, self._config)


def _open_parquet(config: Parquet) -> StoredSource:
    root = Path(config.path).expanduser()
    has_train = (root / "train").is_dir()
    train = ParquetSplit(root / "train" if has_train else root, config)
    test = None
    if has_train and (root / "test").is_dir():
        test = ParquetSplit(root / "test", config, train.names)
    listing = [*train.listing, *(test.listing if test else ())]
    return StoredSource(train, test, train.names, _digest(listing, train, test))


# --- both ----------------------------------------------------------------------------------------


def _decoded(
    ids: np.ndarray,
    encoded: Sequence[Path] | Sequence[bytes | None],
    name: Callable[[int], str],
    size: int | None,
    channels: int,
) -> Pixels:
    """Decodes images, noting those that can't be read.

    Raises:
        DataError: if they differ in size.
    """
    found: list[np.ndarray | None] = []
    notes = []
    for place, data in enumerate(encoded):
        image, why = None, "there is no image"
        try:
            image, why = (None, why) if data is None else (decode(data, size, channels), "")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            why = str(error) or type(error).__name__
        found.append(image)
        notes.append(f"{name(place)}: {why}" if why else "")
    shapes = {image.shape for image in found if image is not None}
    if len(shapes) > 1:
        sizes = ", ".join(sorted(f"{height}×{width}" for height, width, _ in shapes))
        raise DataError(f"images must be of one size, but have {sizes}; set data.source.size")
    blank = np.zeros(shapes.pop() if shapes else (size or 1, size or 1, channels), np.uint8)
    images = [blank if image is None else image for image in found]
    return Pixels(ids, np.stack(images), tuple(notes))


def _digest(listing: list[str], train: StoredSplit, test: StoredSplit | None) -> str:
    found = hashlib.sha256("\n".join(listing).encode())
    for split in (train, test):
        if split is not None:
            found.update(np.ascontiguousarray(split.labels, "<i8").tobytes())
    return found.hexdigest()
