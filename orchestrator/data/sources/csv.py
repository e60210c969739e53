"""Tables of texts with labels, or of texts with target texts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from orchestrator.config.data import Csv
from orchestrator.data.text.rows import (
    LABEL,
    TARGET_TOKENS,
    TOKENS,
    build_lexicon,
    cut_notes,
    rows,
)
from orchestrator.data.text.tokenizer import Lexicon
from orchestrator.data.types import Samples, SourceData
from orchestrator.errors import DataError

Table = tuple[list[str], list[str]]
"""The column of texts, and that of labels or target texts."""


def load(config: Csv, cache: Path) -> SourceData:
    """Reads the file `path`, or `path/train.csv` and `path/test.csv`.

    Source and target texts share one vocabulary.

    Raises:
        DataError: if files or columns are missing, a row has none of its fields, there is one
            label only, or `test` has a label that `train` lacks.
    """
    root = Path(config.path).expanduser()
    train = _read(root / "train.csv" if root.is_dir() else root, config)
    there = root.is_dir() and (root / "test.csv").is_file()
    test = _read(root / "test.csv", config) if there else None
    tables = [train] if test is None else [train, test]
    texts = [text for table in tables for text in table[0]]
    answers = [answer for table in tables for answer in table[1]]
    translates = config.target is not None
    lexicon = build_lexicon(config.tokenizer, [*texts, *answers] if translates else texts)
    names = () if translates else tuple(sorted(set(train[1]), key=_natural))
    samples, notes = _samples(train, names, config, lexicon, "train")
    if test is None:
        return SourceData(samples, None, names, notes, lexicon)
    held, more = _samples(test, names, config, lexicon, "test")
    return SourceData(samples, held, names, notes + more, lexicon)


def _natural(label: str) -> tuple[int, str]:
    """Whole numbers by size, then other labels by their letters."""
    return (int(label), "") if label.isdecimal() else (10**18, label)


def _read(path: Path, config: Csv) -> Table:
    answer = config.label or config.target
    assert answer is not None
    if not path.is_file():
        raise DataError(f"data.source.path: there is no table {path}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=config.delimiter, strict=True)
            there = table.fieldnames
            if not there:
                what = "is empty" if there is None else "begins with a blank line"
                raise DataError(f"{path} {what}; its first line must name the columns")
            missing = [name for name in (config.text, answer) if name not in there]
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(map(repr, missing))}; it has: "
                    f"{', '.join(there)}. Set data.source.text and "
                    f"data.source.{'label' if config.label else 'target'}"
                )
            found = [(row[config.text], row[answer], table.line_num) for row in table]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read as UTF-8 CSV: {error}") from error
    for text, label, line in found:
        if text is None or not label:
            lacks = config.text if text is None else answer
            raise DataError(f"{path}, line {line}: there is no {lacks!r}; mend or remove the row")
    if not found:
        raise DataError(f"{path} has no rows")
    return [text for text, _, _ in found], [label for _, label, _ in found]


def _samples(
    table: Table, names: tuple[str, ...], config: Csv, lexicon: Lexicon, split: str
) -> tuple[Samples, tuple[str, ...]]:
    texts, answers = table
    source = rows(lexicon.tokenizer, texts, config.length)
    notes = cut_notes(split, source, "length")
    if config.target is None:
        number = {name: index for index, name in enumerate(names)}
        try:
            labels = np.array([number[answer] for answer in answers], np.int64)
        except KeyError as error:
            raise DataError(f"label {error} of test.csv is not among train.csv's") from None
        return Samples({TOKENS: source.tokens}, {LABEL: labels}), notes
    # The decoder is given `<bos> …` and answers `… <eos>`: one row, read at two places.
    target = rows(lexicon.tokenizer, answers, (config.target_length or config.length) + 1)
    notes += cut_notes(f"{split} targets", target, "target_length")
    inputs = {TOKENS: source.tokens, TARGET_TOKENS: target.tokens[:, :-1]}
    return Samples(inputs, {LABEL: target.tokens[:, 1:]}), notes
