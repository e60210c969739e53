"""Characters or words of a text as numbers, and back.

The four special tokens have fixed numbers. `<pad>` fills short rows up, `<unk>` stands for what
the vocabulary lacks, `<bos>` and `<eos>` begin and end a text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

LEVELS = ("character", "word")
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
PAD, UNKNOWN, BEGIN, END = range(len(SPECIAL))
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Tokenizer:
    """Splits text into tokens and numbers them.

    Text is brought into Unicode's form NFC first, with plain line feeds. At level `character` each
    code point is a token, so that decoding gives the text back. At level `word` a token is a run
    of letters, digits and underscores, or one punctuation mark; white space is dropped, and
    decoding puts a blank between tokens.

    Attributes:
        level: `character` or `word`.
        lowercase: fold case first.
        vocabulary: every token; its place is its number. The special tokens come first.
    """

    level: str
    lowercase: bool
    vocabulary: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.level not in LEVELS or self.vocabulary[: len(SPECIAL)] != SPECIAL:
            raise ValueError(
                f"a tokenizer's level must be one of {', '.join(LEVELS)} and its vocabulary begin "
                f"with {' '.join(SPECIAL)}, but got {self.level!r} and {self.vocabulary[:4]}"
            )

    def __len__(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Each token's number."""
        return {token: number for number, token in enumerate(self.vocabulary)}

    def tokens(self, text: str) -> list[str]:
        """Cuts a text; a special token that is written out in it is only text."""
        text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
        text = text.lower() if self.lowercase else text
        return list(text) if self.level == "character" else _WORD.findall(text)

    def encode(self, text: str) -> list[int]:
        """A text's token numbers; `UNKNOWN` for what the vocabulary lacks."""
        number = self.numbers
        return [number.get(token, UNKNOWN) for token in self.tokens(text)]

    def decode(self, numbers: Iterable[int]) -> str:
        """Text from token numbers; special tokens other than `<unk>` are left out."""
        hidden = (PAD, BEGIN, END)
        shown = [self.vocabulary[int(n)] for n in numbers if int(n) not in hidden]
        return ("" if self.level == "character" else " ").join(shown)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "level": self.level,
            "lowercase": self.lowercase,
            "vocabulary": list(self.vocabulary),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Tokenizer:
        """Reads what `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: if it is not one.
        """
        return cls(content["level"], content["lowercase"], tuple(content["vocabulary"]))


@dataclass(frozen=True)
class Lexicon:
    """Every token of a source, from which a split's vocabulary is chosen.

    A source is read once, whatever its split; what a model may know depends on the split. So the
    source numbers all its tokens, and these numbers are replaced when the split is known.

    Attributes:
        tokenizer: its vocabulary is every token that occurs.
        min_count: how often a token must occur in the train split to be known.
        max_size: most tokens of the vocabulary, special ones included; None for all.
    """

    tokenizer: Tokenizer
    min_count: int = 1
    max_size: int | None = None

    def choose(self, counts: np.ndarray) -> list[int]:
        """The places of the known tokens: special ones, then by falling count.

        Args:
            counts: int64[len(tokenizer)], how often each token occurs in the train split.
        """
        free = np.arange(len(SPECIAL), len(self.tokenizer))
        free = free[counts[free] >= self.min_count]
        free = free[np.argsort(-counts[free], kind="stable")]
        if self.max_size is not None:
            free = free[: self.max_size - len(SPECIAL)]
        return [*range(len(SPECIAL)), *free.tolist()]

    def restrict(self, chosen: list[int]) -> tuple[Tokenizer, np.ndarray]:
        """The tokenizer of the chosen tokens, and the table that renumbers the source's arrays.

        Returns:
            The tokenizer, and int64[len(self.tokenizer)]: each token's new number.
        """
        words = self.tokenizer.vocabulary
        table = np.full(len(words), UNKNOWN, np.int64)
        table[chosen] = np.arange(len(chosen))
        return (
            Tokenizer(
                self.tokenizer.level,
                self.tokenizer.lowercase,
                tuple(words[place] for place in chosen),
            ),
            table,
        )

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {
            "tokenizer": self.tokenizer.to_json(),
            "min_count": self.min_count,
            "max_size": self.max_size,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Lexicon:
        """Reads what `to_json` gave."""
        tokenizer = Tokenizer.from_json(content["tokenizer"])
        return cls(tokenizer, content["min_count"], content["max_size"])
