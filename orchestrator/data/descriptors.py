"""A few numbers that say what an input looks like: the same for training and for serving.

They are what a change of camera, lighting, crop or language shows in first, and cheap enough to be
computed beside requests.

Axes: N inputs, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.data.text.tokenizer import BEGIN, END, PAD, UNKNOWN, Tokenizer

Values = npt.NDArray[np.float32]
Descriptors = dict[str, Values]
"""float32[N] by the descriptor's name."""

_CHANNELS = {1: (), 3: ("red", "green", "blue")}


def image_descriptors(pixels_NCHW: npt.NDArray[np.generic]) -> Descriptors:
    """Brightness, contrast, sharpness and, of several channels, each one's mean.

    Args:
        pixels_NCHW: uint8 in 0..255, or floats in 0..1.

    Returns:
        `brightness`: the mean pixel; `contrast`: the pixels' standard deviation; `sharpness`: the
        mean absolute difference between neighbours; `red` and so on, or `channel 0` and so on: a
        channel's mean. All of pixels in 0..1.
    """
    scale = np.float32(255 if pixels_NCHW.dtype == np.uint8 else 1)
    x_NCHW = pixels_NCHW.astype(np.float32) / scale
    across = np.abs(np.diff(x_NCHW, axis=3)).mean((1, 2, 3)) if x_NCHW.shape[3] > 1 else 0
    down = np.abs(np.diff(x_NCHW, axis=2)).mean((1, 2, 3)) if x_NCHW.shape[2] > 1 else 0
    found: Mapping[str, npt.NDArray[np.floating]] = {
        "brightness": x_NCHW.mean((1, 2, 3)),
        "contrast": x_NCHW.std((1, 2, 3)),
        "sharpness": np.asarray((across + down) / 2 + np.zeros(len(x_NCHW))),
    }
    channels = x_NCHW.shape[1]
    names = _CHANNELS.get(channels) or tuple(f"channel {n}" for n in range(channels))
    means_NC = x_NCHW.mean((2, 3))
    several = zip(names, means_NC.T, strict=True) if channels > 1 else ()
    return {name: values.astype(np.float32) for name, values in (*found.items(), *several)}


def token_descriptors(tokens_NT: npt.NDArray[np.integer]) -> Descriptors:
    """How long texts are, and how much of them is unknown.

    Args:
        tokens_NT: rows as the model reads them, `<bos> … <eos>` and padding.

    Returns:
        `length`: tokens without padding; `unknown`: the share of them that the vocabulary lacks.
    """
    length = (tokens_NT != PAD).sum(1)
    unknown = (tokens_NT == UNKNOWN).sum(1) / np.maximum(length, 1)
    return {"length": length.astype(np.float32), "unknown": unknown.astype(np.float32)}


def joined(parts: Sequence[Mapping[str, Values]]) -> Descriptors:
    """Several batches' descriptors as one."""
    names = parts[0] if parts else ()
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def text_descriptors(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Descriptors:
    """The descriptors of texts: those of the rows that the model reads.

    Args:
        length: tokens of a row.
    """
    found = np.full((len(texts), length), PAD, np.int64)
    for place, text in enumerate(texts):
        numbers = [BEGIN, *tokenizer.encode(text)[: length - 2], END]
        found[place, : len(numbers)] = numbers
    return token_descriptors(found)
