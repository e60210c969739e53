"""What a predictor says of files on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from orchestrator.errors import RunFolderError, UserError
from orchestrator.serve.backend import Pixels
from orchestrator.serve.errors import RequestError
from orchestrator.serve.images import decode
from orchestrator.serve.predictor import Predictor, answers_to, load_any
from orchestrator.serve.protocol.people import Prediction, best_labels


class FileAnswer(BaseModel):
    """The likeliest labels of one sample; an array of several has one answer a row."""

    input: str
    predictions: list[Prediction]
    probabilities: list[float]
    """Of every class, in the order of the label names."""


def predict_files(predictor: Predictor, paths: Sequence[Path], top: int = 5) -> list[FileAnswer]:
    """Answers for image files and `.npy` arrays.

    Args:
        predictor: the model.
        paths: PNG or JPEG files, or arrays [C, H, W] or [B, C, H, W], uint8 in 0..255 or floats
            in 0..1.
        top: labels in each answer.

    Raises:
        UserError: for a file that is neither, naming it.
    """
    answers: list[FileAnswer] = []
    for path in paths:
        try:
            pixels = read_pixels(path, predictor.card.shape)
        except (RequestError, OSError, ValueError) as error:
            raise UserError(f"{path}: {error}") from None
        rows = answers_to(predictor, pixels).numpy()
        for index, row in enumerate(rows):
            name = str(path) if len(rows) == 1 else f"{path}[{index}]"
            best = best_labels(row, predictor.card.label_names, top)
            answers.append(FileAnswer(input=name, predictions=best, probabilities=row.tolist()))
    return answers


def predict_text_files(root: Path, paths: Sequence[Path], top: int = 5) -> list[FileAnswer]:
    """Answers for text files.

    Args:
        root: the run's or the ensemble's folder.
        paths: UTF-8 files, one text each.
        top: labels in each answer.

    Raises:
        RunFolderError: if the run gives no label to a text.
        UserError: for a file that is not UTF-8, naming it.
    """
    texts = []
    for path in paths:
        try:
            texts.append(path.read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8: {error}") from None
    predictor = load_any(root)
    if predictor.card.reads != "text":
        raise RunFolderError(f"{root} reads images, not texts; give it PNG or JPEG files")
    rows = answers_to(predictor, texts).numpy()
    return [
        FileAnswer(
            input=str(path),
            predictions=best_labels(row, predictor.card.label_names, top),
            probabilities=row.tolist(),
        )
        for path, row in zip(paths, rows, strict=True)
    ]


def read_pixels(path: Path, shape: tuple[int, ...]) -> Pixels:
    """Pixels [B, C, H, W] of one file.

    Raises:
        RequestError: if it is no image, or an array of another shape, type or range.
    """
    if path.suffix != ".npy":
        return decode(path.read_bytes(), shape)[None]
    array: Pixels = np.load(path, allow_pickle=False)
    pixels = array[None] if array.ndim == 3 else array
    if pixels.ndim != 4 or pixels.shape[1:] != shape or not len(pixels):
        raise RequestError(f"an array is {list(shape)} or [B, …] of it, not {list(array.shape)}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise RequestError("an array holds uint8 in 0..255 or finite floats in 0..1")
    return pixels.astype(np.float32)
