"""Inputs on which executors are compared, calibrated and timed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from orchestrator.config.load import load_config
from orchestrator.data.cache import is_cached
from orchestrator.data.memory import load_data
from orchestrator.errors import OrchError
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.paths import RunPaths
from orchestrator.serve.backend import Inputs
from orchestrator.serve.cards import ModelCard

SAMPLES = 128
_SEED = 5
_WORDS = "the a of and to in is was it for on with as by at from this that an be"


def sample_inputs(root: Path, card: ModelCard) -> tuple[Inputs, str]:
    """`SAMPLES` inputs as clients send them, and in words where they are from.

    Images of the validation split where the data that the model was trained on lies decoded on
    this machine; nothing is downloaded. Otherwise, drawn with a fixed seed, a quarter each of
    noise, smooth noise, grey images and pixels that are black or white.

    Args:
        root: a run or ensemble folder.
        card: what the model takes.
    """
    if card.reads == "text":
        return _texts(), "made-up texts"
    with contextlib.suppress(OrchError, OSError, KeyError, ValueError):
        found = _validation(root, card)
        if found is not None:
            return found, "validation images"
    return _made_up(card.shape), "made-up images"


def take(samples: Inputs, count: int) -> Inputs:
    """The first `count` samples, over and over if there are fewer."""
    if isinstance(samples, np.ndarray):
        return np.resize(samples, (count, *samples.shape[1:]))
    return [samples[number % len(samples)] for number in range(count)]


def _validation(root: Path, card: ModelCard) -> Inputs | None:
    run = read_ensemble(root).members[0].path if RunPaths(root).kind == "ensemble" else root
    data = load_config(RunPaths(run).config).data
    if not is_cached(data.source):
        return None
    samples, ids = load_data(data).split("val")
    chosen = np.sort(np.random.default_rng(_SEED).choice(ids, min(SAMPLES, len(ids)), False))
    images = np.ascontiguousarray(samples.inputs["image"][chosen].transpose(0, 3, 1, 2))
    if images.dtype != np.uint8 or images.shape[1:] != card.shape:
        return None
    return np.resize(images, (SAMPLES, *card.shape))


def _made_up(shape: tuple[int, ...]) -> Inputs:
    draws, size = np.random.default_rng(_SEED), (SAMPLES // 4, *shape)
    noise = draws.integers(0, 256, size)
    coarse = draws.integers(0, 256, (*size[:2], -(-shape[1] // 7), -(-shape[2] // 7)))
    smooth = coarse.repeat(7, 2).repeat(7, 3)[:, :, : shape[1], : shape[2]]
    grey = np.broadcast_to(draws.integers(0, 256, (size[0], 1, 1, 1)), size)
    extremes = 255 * draws.integers(0, 2, size)
    every = np.stack([noise, smooth, grey, extremes], 1).reshape(SAMPLES, *shape)
    return every.astype(np.uint8)


def _texts() -> list[str]:
    draws, words = np.random.default_rng(_SEED), _WORDS.split()
    return [" ".join(draws.choice(words, draws.integers(1, 40))) for _ in range(SAMPLES)]
