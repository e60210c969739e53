"""Texts as rows of token numbers: windows of a running text, or one row a text.

Axes: N samples, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.config.data import TokenizerConfig
from orchestrator.data.text.tokenizer import BEGIN, END, PAD, SPECIAL, Lexicon, Tokenizer
from orchestrator.data.types import Samples
from orchestrator.errors import DataError

TOKENS, TARGET_TOKENS, LABEL = "tokens", "target_tokens", "label"


@dataclass(frozen=True)
class Rows:
    """Token numbers, and how many texts were longer than a row."""

    tokens: np.ndarray
    cut: int


def build_lexicon(config: TokenizerConfig, texts: Sequence[str]) -> Lexicon:
    """Numbers every token of the texts, in the order of code points."""
    bare = Tokenizer(config.level, config.lowercase, SPECIAL)
    found = {token for text in texts for token in bare.tokens(text)} - set(SPECIAL)
    tokenizer = Tokenizer(config.level, config.lowercase, (*SPECIAL, *sorted(found)))
    return Lexicon(tokenizer, config.min_count, config.max_size)


def windows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Samples:
    """Cuts the texts, one after another with `<eos>` behind each, into whole windows.

    Windows do not overlap, so no window's text is another's; the last tokens that fill no window
    are left out, so every window counts alike.

    Returns:
        `tokens` int32[N, length], and as `label` the same tokens one place on.

    Raises:
        DataError: if the texts do not fill one window.
    """
    stream = np.array([n for text in texts for n in (*tokenizer.encode(text), END)], np.int32)
    count = (len(stream) - 1) // length
    if count < 1:
        raise DataError(
            f"data.source.length={length} needs a text of at least {length + 1} tokens, but there "
            f"are {len(stream)}; lower length, or add text"
        )
    used = count * length
    inputs, label = stream[:used], stream[1 : used + 1]
    return Samples({TOKENS: inputs.reshape(count, length)}, {LABEL: label.reshape(count, length)})


def rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Rows:
    """One row a text, `<bos> … <eos>`; long texts lose their end, short rows are filled up.

    Returns:
        int32[N, length].
    """
    found = np.full((len(texts), length), PAD, np.int32)
    cut = 0
    for place, text in enumerate(texts):
        numbers = tokenizer.encode(text)
        cut += len(numbers) > length - 2
        numbers = [BEGIN, *numbers[: length - 2], END]
        found[place, : len(numbers)] = numbers
    return Rows(found, cut)


def cut_notes(what: str, found: Rows, key: str) -> tuple[str, ...]:
    """What to tell the user about texts that lost their end."""
    if not found.cut:
        return ()
    length = found.tokens.shape[1]
    return (
        f"{what}: {found.cut} of {len(found.tokens)} texts have more than {length - 2} tokens and "
        f"lost their end; raise data.source.{key} to keep it",
    )
