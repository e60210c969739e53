"""`statistics.json`: what a trained model saw of held-out data, and what it answered.

A server compares its requests with it. The held-out split is drawn as the training split is, but
the model has not seen it and it is not augmented, so that answers to it are what answers in
service should look like.

Axes: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.data.text.tokenizer import Tokenizer
from orchestrator.errors import RunFolderError
from orchestrator.files import read_json, write_json

FORMAT = 1
NAME = "statistics.json"
CONFIDENCE = "confidence"
"""The descriptor of an answer: its largest probability."""
BINS = 15
"""Equal bins of confidence for the calibration error, as in Guo et al., 2017."""
_KEPT = 512
"""Most values kept of a descriptor."""
_DIGITS = 6

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Column:
    """One descriptor over all samples.

    Attributes:
        quantiles: float64, rising: all values where there are few, else evenly spaced quantiles
            from the smallest to the largest.
    """

    mean: float
    std: float
    quantiles: Floats

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Column:
        """The column of all samples' values; at least one."""
        exact = values.astype(np.float64)
        found = np.sort(exact)
        if len(found) > _KEPT:
            found = np.quantile(found, np.linspace(0, 1, _KEPT))
        return cls(float(exact.mean()), float(exact.std()), found.round(_DIGITS))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        rounded = {"mean": round(self.mean, _DIGITS), "std": round(self.std, _DIGITS)}
        return {**rounded, "quantiles": self.quantiles.tolist()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Column:
        """Reads what `to_json` gave."""
        quantiles = np.array(content["quantiles"], np.float64)
        if not quantiles.size or not np.isfinite(quantiles).all():
            raise ValueError("quantiles are finite numbers, at least one")
        return cls(float(content["mean"]), float(content["std"]), quantiles)


@dataclass(frozen=True, eq=False)
class Calibration:
    """How confident answers were, and how right, by bins of confidence.

    Attributes:
        count: int64[BINS], answers; bin b holds confidences in (b/BINS, (b+1)/BINS].
        confidence: float64[BINS], the sum of theirs.
        correct: int64[BINS], those that were right.
    """

    count: Counts
    confidence: Floats
    correct: Counts

    @classmethod
    def of(
        cls, confidence: npt.NDArray[np.floating], correct: npt.NDArray[np.bool_]
    ) -> Calibration:
        """Of N answers: their largest probability, and whether they were right."""
        bins = bin_of(confidence)

        def sums(weights: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
            return np.bincount(bins, weights, BINS)

        return cls(sums(None), sums(confidence), sums(correct).astype(np.int64))

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None without any answer."""
        total = int(self.count.sum())
        return int(self.correct.sum()) / total if total else None

    @property
    def error(self) -> float | None:
        """The expected calibration error, equation 3 of Guo et al., 2017; None without answers."""
        total = int(self.count.sum())
        return float(np.abs(self.confidence - self.correct).sum()) / total if total else None

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; `error` and `accuracy` are for people."""
        return {
            "count": self.count.tolist(),
            "confidence": self.confidence.round(_DIGITS).tolist(),
            "correct": self.correct.tolist(),
            "error": None if self.error is None else round(self.error, _DIGITS),
            "accuracy": self.accuracy,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Calibration:
        """Reads what `to_json` gave."""
        return cls(
            np.array(content["count"], np.int64),
            np.array(content["confidence"], np.float64),
            np.array(content["correct"], np.int64),
        )


def bin_of(confidence: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each confidence in 0..1."""
    found: npt.NDArray[np.int64] = np.ceil(confidence * BINS).astype(np.int64) - 1
    return found.clip(0, BINS - 1)


@dataclass(frozen=True, eq=False)
class Statistics:
    """What `statistics.json` holds.

    Attributes:
        data_digest: of the source's samples.
        split: whose samples are described.
        samples: how many answers are counted.
        columns: by descriptor; `CONFIDENCE` is one of them.
        labels: int64[K], samples of each class.
        predicted: int64[K], answers of each class.
        tokenizer, text_length: of a text model; not in the file, but in `model.json`.
    """

    data_digest: str
    split: str
    samples: int
    columns: Mapping[str, Column]
    labels: Counts
    predicted: Counts
    calibration: Calibration
    tokenizer: Tokenizer | None = None
    text_length: int = 0


def make_statistics(
    descriptors: Mapping[str, npt.NDArray[np.floating]],
    probabilities: npt.NDArray[np.floating],
    labels: npt.NDArray[np.integer],
    *,
    data_digest: str,
    split: str,
) -> Statistics:
    """The statistics of a split.

    Args:
        descriptors: a value for each sample that was described, by name.
        probabilities: [N, K].
        labels: [N], the right answers.
    """
    classes = probabilities.shape[1]
    confidence, predicted = probabilities.max(1), probabilities.argmax(1)
    columns = {name: Column.of(values) for name, values in descriptors.items()}
    return Statistics(
        data_digest,
        split,
        len(labels),
        {**columns, CONFIDENCE: Column.of(confidence)},
        np.bincount(labels, minlength=classes),
        np.bincount(predicted, minlength=classes),
        Calibration.of(confidence, predicted == labels),
    )


def write_statistics(root: Path, found: Statistics) -> None:
    """Writes ``root/statistics.json``, whole or not at all."""
    content = {
        "format": FORMAT,
        "data_digest": found.data_digest,
        "split": found.split,
        "samples": found.samples,
        "descriptors": {name: column.to_json() for name, column in found.columns.items()},
        "labels": found.labels.tolist(),
        "predicted": found.predicted.tolist(),
        "calibration": found.calibration.to_json(),
    }
    write_json(root / NAME, content)


def read_statistics(root: Path) -> Statistics | None:
    """Reads a run's statistics; None where there are none, as in runs of older versions.

    Raises:
        RunFolderError: if the file is damaged.
    """
    path = root / NAME
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        columns = content["descriptors"]
        return Statistics(
            str(content["data_digest"]),
            str(content["split"]),
            int(content["samples"]),
            {name: Column.from_json(column) for name, column in columns.items()},
            np.array(content["labels"], np.int64),
            np.array(content["predicted"], np.int64),
            Calibration.from_json(content["calibration"]),
        )
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error!r}); train the run again") from None
