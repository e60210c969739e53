"""What a model answered on one split, as files and numpy arrays, and how good the answers are.

Axes: N samples, K classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DataError, RunFolderError
from orchestrator.files import write_bytes

Array = np.ndarray

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers of one model, or of an ensemble, to one split.

    Attributes:
        ids: int64[N], each sample's place in its source.
        labels: int64[N], the right answers.
        logits: float32[N, K].

    Raises:
        DataError: if the shapes do not fit each other or a label is not below K.
    """

    ids: Array
    labels: Array
    logits: Array

    def __post_init__(self) -> None:
        count = len(self.ids)
        if self.ids.shape != (count,) or self.labels.shape != (count,) or self.logits.ndim != 2:
            raise DataError(
                "ids[N], labels[N] and logits[N, K] must hold, but got "
                f"{self.ids.shape}, {self.labels.shape} and {self.logits.shape}"
            )
        if len(self.logits) != count:
            raise DataError(f"{count} ids have {len(self.logits)} rows of logits")
        classes = self.logits.shape[1]
        if count and not (self.labels.min() >= 0 and self.labels.max() < classes):
            raise DataError(
                f"0 <= label < {classes} must hold, but labels go from "
                f"{self.labels.min()} to {self.labels.max()}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def probabilities(self) -> Array:
        """float64[N, K], rows that sum to 1."""
        return softmax(self.logits)


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Writes a Parquet file (columns `id`, `label`, `logits`), whole or not at all.

    Raises:
        OSError: if the disk is full.
    """
    classes = predictions.logits.shape[1]
    flat = np.ascontiguousarray(predictions.logits, dtype=np.float32).reshape(-1)
    table = pa.table(
        {
            "id": pa.array(predictions.ids, pa.int64()),
            "label": pa.array(predictions.labels, pa.int64()),
            "logits": pa.FixedSizeListArray.from_arrays(pa.array(flat), classes),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Reads what `write_predictions` wrote.

    Raises:
        RunFolderError: if the file is not there.
        DataError: if it is damaged or holds something else.
    """
    if not path.is_file():
        raise RunFolderError(
            f"{path.parent.parent} kept no predictions of {path.stem!r} ({path} is missing); "
            "finish the run first, with --resume"
        )
    try:
        table = pq.read_table(path, columns=["id", "label", "logits"]).combine_chunks()
        rows = table.column("logits").combine_chunks()
        classes = rows.type.list_size
        logits = rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, classes)
        return Predictions(
            table.column("id").to_numpy().astype(np.int64, copy=False),
            table.column("label").to_numpy().astype(np.int64, copy=False),
            logits.astype(np.float32, copy=False),
        )
    except (pa.ArrowException, OSError, AttributeError, ValueError, DataError) as error:
        raise DataError(f"{path} is not a whole predictions file ({error})") from error


def softmax(logits: Array) -> Array:
    """The softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponents = np.exp(shifted)
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of samples whose likeliest class is the label; ties go to the lower class.

    Args:
        probabilities: [N, K], or logits.
        labels: int64[N].
    """
    return float((probabilities.argmax(axis=-1) == labels).mean())


def nll(probabilities: Array, labels: Array) -> float:
    """Mean negative log-likelihood of the labels, in nats.

    Args:
        probabilities: [N, K], rows that sum to 1.
        labels: int64[N].
    """
    taken = np.take_along_axis(probabilities, labels[:, None], axis=-1)
    return float(-np.log(np.maximum(taken, _TINY)).mean())
