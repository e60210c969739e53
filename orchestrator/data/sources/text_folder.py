"""Text files: one running text for a language model, or one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from orchestrator.config.data import TextFolder
from orchestrator.data.sources.image_folder import check_test_classes, class_names
from orchestrator.data.text.rows import LABEL, TOKENS, build_lexicon, cut_notes, rows, windows
from orchestrator.data.text.tokenizer import Tokenizer
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError

SUFFIX = ".txt"


def load(config: TextFolder, cache: Path) -> SourceData:
    """Reads `path/train` and `path/test`, or `path` alone when it holds the texts itself.

    Raises:
        DataError: if folders are missing or empty, files lie both in the folder and in class
            folders, a file is not UTF-8, or a text is too short for one window.
    """
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise DataError(f"data.source.path={config.path} is not a folder")
    train = root / "train" if (root / "train").is_dir() else root
    test = root / "test" if train != root and (root / "test").is_dir() else None
    if _is_running(train):
        return _running(config, train, test)
    return _classes(config, train, test)


def _running(config: TextFolder, train: Path, test: Path | None) -> SourceData:
    texts = [_read(file) for file in _files(train)]
    test_texts = [_read(file) for file in _files(test)] if test else []
    lexicon = build_lexicon(config.tokenizer, [*texts, *test_texts])
    samples = windows(lexicon.tokenizer, texts, config.length)
    held = windows(lexicon.tokenizer, test_texts, config.length) if test else None
    return SourceData(samples, held, (), (), lexicon)


def _classes(config: TextFolder, train: Path, test: Path | None) -> SourceData:
    names = class_names(train)
    texts, labels = _labelled(train, names)
    test_texts: list[str] = []
    if test:
        check_test_classes(test, train, names)
        test_texts, test_labels = _labelled(test, names)
    lexicon = build_lexicon(config.tokenizer, [*texts, *test_texts])
    samples, notes = _samples(lexicon.tokenizer, texts, labels, config.length, "train")
    if not test:
        return SourceData(samples, None, names, notes, lexicon)
    held, more = _samples(lexicon.tokenizer, test_texts, test_labels, config.length, "test")
    return SourceData(samples, held, names, notes + more, lexicon)


def _samples(
    tokenizer: Tokenizer, texts: list[str], labels: np.ndarray, length: int, split: str
) -> tuple[Samples, tuple[str, ...]]:
    found = rows(tokenizer, texts, length)
    return Samples({TOKENS: found.tokens}, {LABEL: labels}), cut_notes(split, found, "length")


def _labelled(folder: Path, names: tuple[str, ...]) -> tuple[list[str], np.ndarray]:
    """Every text below a split's class folders, in sorted order, and int64 labels."""
    texts: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            continue
        files = sorted((folder / name).rglob(f"*{SUFFIX}"))
        if not files:
            raise DataError(
                f"class folder {folder / name} has no text (*{SUFFIX}); add some or remove it"
            )
        texts += [_read(file) for file in files]
        labels += [label] * len(files)
    return texts, np.array(labels, np.int64)


def _is_running(folder: Path) -> bool:
    """Whether a folder holds texts itself, not folders of them."""
    files = _files(folder)
    folders = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if files and folders:
        raise DataError(
            f"{folder} must hold either *{SUFFIX} files, for a language model, or one folder of "
            f"them per class, but has {files[0].name} and the folder {folders[0]}; move one away"
        )
    if not files and not folders:
        raise DataError(f"{folder} has neither *{SUFFIX} files nor class folders of them")
    return bool(files)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if path.is_file())


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is not UTF-8 ({error.reason} at byte {error.start}); convert or remove it"
        ) from error
