"""Parquet files with a column of images, encoded or as arrays, and one of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.config.data import Parquet
from orchestrator.data.sources.images import corrupt_notes, decode_all
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError


def load(config: Parquet, cache: Path) -> SourceData:
    """Reads the files of `path/train` and `path/test`, of `path`, or the file `path`.

    Images are encoded bytes, structs with a field `bytes` (as Hugging Face datasets writes
    them), or lists of numbers 0..255; labels are integers or strings.

    Raises:
        DataError: if files or columns are missing, or their content does not fit.
    """
    root = Path(config.path).expanduser()
    has_train = (root / "train").is_dir()
    train = read_table(root / "train" if has_train else root, config)
    names = label_names(train, config)
    samples, notes = _samples(train, names, config, "train")
    if not (has_train and (root / "test").is_dir()):
        return SourceData(samples, None, names, notes)
    test, more = _samples(read_table(root / "test", config), names, config, "test")
    return SourceData(samples, test, names, notes + more)


def read_table(path: Path, config: Parquet, columns: list[str] | None = None) -> Any:
    """Both columns of a file or of a folder's files (sorted by name), as one Arrow table.

    Args:
        columns: those to read, when not both; both have to be there.
    """
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise DataError(f"data.source.path: {path} is neither a Parquet file nor a folder of them")
    wanted = [config.image, config.label]
    tables = []
    for file in files:
        try:
            there = pq.read_schema(file).names
            missing = [name for name in wanted if name not in there]
            if missing:
                raise DataError(
                    f"{file} has no column {', '.join(map(repr, missing))}; it has: "
                    f"{', '.join(there)}. Set data.source.image and data.source.label"
                )
            tables.append(pq.read_table(file, columns=columns or wanted))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file} can't be read as Parquet: {error}") from error
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise DataError(f"the files of {path} have different columns: {error}") from error


def label_names(table: Any, config: Parquet) -> tuple[str, ...]:
    """Names in the order of label numbers: from the file's metadata, else the sorted values."""
    return _named_classes(table.schema, config.label) or tuple(
        map(str, sorted(set(_label_values(table, config))))
    )


def _named_classes(schema: Any, column: str) -> tuple[str, ...]:
    """Class names that Hugging Face datasets stored in the schema's metadata, if it did."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, about["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _label_values(table: Any, config: Parquet) -> list[Any]:
    column = table[config.label]
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ):
        raise DataError(f"labels in {config.label!r} must be integers or strings, not {kind}")
    if column.null_count:
        raise DataError(f"{column.null_count} rows have no label in {config.label!r}; remove them")
    values: list[Any] = column.to_pylist()
    return values


def label_numbers(table: Any, names: tuple[str, ...], config: Parquet) -> np.ndarray:
    """int64[N]: each row's label as its place in `names`."""
    values = _label_values(table, config)
    integers = bool(values) and isinstance(values[0], int)
    if integers and _named_classes(table.schema, config.label):
        if min(values) < 0 or max(values) >= len(names):
            raise DataError(
                f"labels in {config.label!r} must lie in 0..{len(names) - 1}, "
                f"but reach {min(values)}..{max(values)}"
            )
        return np.array(values, np.int64)
    number = {name: index for index, name in enumerate(names)}
    try:
        return np.array([number[str(value)] for value in values], np.int64)
    except KeyError as error:
        raise DataError(f"label {error} of the test files is not among the train files'") from None


def _samples(
    table: Any, names: tuple[str, ...], config: Parquet, split: str
) -> tuple[Samples, tuple[str, ...]]:
    labels = label_numbers(table, names, config)
    column = table[config.image]
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        column = pa.chunked_array([chunk.field("bytes") for chunk in column.chunks])
        kind = column.type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        return Samples({"image": array_images(column, config)}, {"label": labels}), ()
    encoded = column.to_pylist()
    decoded = decode_all(
        encoded,
        lambda number: f"row {number} of {split}",
        size=config.size,
        channels=config.channels,
        max_corrupt=config.max_corrupt,
    )
    samples = Samples({"image": decoded.images}, {"label": labels[decoded.kept]})
    return samples, corrupt_notes(split, decoded)


def array_images(column: Any, config: Parquet) -> np.ndarray:
    """uint8[N, H, W, C] from lists, flat or nested."""
    if config.shape is None or len(config.shape) not in (2, 3):
        raise DataError(
            f"{config.image!r} holds {column.type}; for arrays data.source.shape must say "
            f"(H, W) or (H, W, C), but it is {config.shape}"
        )
    if column.null_count:
        raise DataError(f"{column.null_count} rows have no image in {config.image!r}; remove them")
    flat = column.combine_chunks()
    while _is_list(flat.type):
        flat = flat.flatten()
    if not pa.types.is_integer(flat.type):
        raise DataError(
            f"{config.image!r} holds {column.type}; it must hold encoded images, or lists of "
            "integers in 0..255"
        )
    values: np.ndarray = flat.to_numpy(zero_copy_only=False)
    size = int(np.prod(config.shape))
    if len(values) != len(column) * size or _uneven(column, config.shape[0], size):
        raise DataError(
            f"arrays in {config.image!r} must have {size} values (data.source.shape="
            f"{list(config.shape)}), but {len(column)} rows hold {len(values)}"
        )
    if len(values) and (values.min() < 0 or values.max() > 255):
        raise DataError(
            f"arrays in {config.image!r} must lie in 0..255, "
            f"but reach {values.min()}..{values.max()}"
        )
    shape = config.shape if len(config.shape) == 3 else (*config.shape, 1)
    return values.astype(np.uint8).reshape(len(column), *shape)


def _is_list(kind: Any) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _uneven(column: Any, rows: int, size: int) -> bool:
    """Whether some row's list is of another length than a flat or a nested image's would be."""
    import pyarrow.compute as pc

    lengths = set(pc.list_value_length(column).to_pylist())
    return not (lengths <= {rows} or lengths <= {size})
