"""The zoo as a table: what each model has, what is published of it, and where.

Counting all models takes PyTorch and some seconds. The result is kept under the cache root, bound
to the source text that it was counted from, so that a listing is quick and never out of date.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orchestrator.models
from orchestrator.config import zoo
from orchestrator.config.base import Part, find
from orchestrator.config.model import Model
from orchestrator.files import cache_root, read_json, write_json
from orchestrator.models.registry import FAMILIES, names, published

if TYPE_CHECKING:
    from orchestrator.analysis.model_summary import Input

UNPUBLISHED_RESOLUTION = 32
"""At what side, in pixels, a model of our own is counted: they are made for small images."""
LENGTH, VOCABULARY = 128, 10_000
"""For how many tokens, out of how many, a network that reads texts is counted."""


@dataclass(frozen=True)
class Figures:
    """One model's line.

    Attributes:
        parameters: ours, with 1,000 classes where it was published with no other number.
        multiply_adds: for one sample, as `model_summary` counts them.
        input: shape of the sample: (C, H, W) of an image, (T,) of a text.
        paper: authors and year; empty for a model of our own.
        figure: the parameters that the paper states, as it writes them; empty where it has none.
        reference: ``library:name`` of the implementation whose weights fit; empty without one.
        reference_parameters: of its checkpoint; None without one.
    """

    name: str
    parameters: int
    multiply_adds: int
    input: tuple[int, ...]
    paper: str = ""
    figure: str = ""
    reference: str = ""
    reference_parameters: int | None = None


def count(name: str) -> Figures:
    """Counts one model on the meta device.

    Raises:
        UnknownNameError: for an unknown name.
    """
    from orchestrator.analysis.model_summary import describe

    section = find("model", name).config.model_validate({"type": name})
    assert isinstance(section, Model)
    known, reads = published(name), usual_input(section)
    found = describe(section, reads)
    mine = (name, found.parameters, found.multiply_adds, reads.shape)
    if known is None:
        return Figures(*mine)
    theirs = known.parameters if known.reference else None
    return Figures(*mine, known.paper, known.figure, known.reference, theirs)


def usual_input(section: Part) -> Input:
    """What a model is counted for: images or texts as large as it was published for.

    Models of our own are counted for images of 32 pixels, or texts of 128 tokens.
    """
    from orchestrator.analysis.model_summary import Input

    known = published(section.type) if section.type in names() else None
    if getattr(section, "takes", "") == "tokens":
        if known:
            tokens, classes = known.vocabulary, known.classes
            return Input((known.resolution,), classes, tokens, per_token=known.per_token)
        if getattr(section, "texts", 1) == 1:
            return Input((LENGTH,), vocabulary=VOCABULARY)
        # Where a text answers a text, the classes are the tokens.
        return Input((LENGTH, LENGTH), VOCABULARY, vocabulary=VOCABULARY, per_token=True)
    side = known.resolution if known else UNPUBLISHED_RESOLUTION
    return Input((3, side, side))


def zoo_names() -> list[str]:
    """The models of this package, in the order of their families; no plugin's."""
    return [name for family in FAMILIES.values() for name in family]


def count_all() -> dict[str, Figures]:
    """Counts every model of this package, and keeps the result where that can be."""
    digest = _digest()  # first: a source that changes meanwhile must not pass for counted
    found = {name: count(name) for name in zoo_names()}
    lines = [asdict(figures) for figures in found.values()]
    with contextlib.suppress(OSError):
        _kept().parent.mkdir(parents=True, exist_ok=True)
        write_json(_kept(), {"digest": digest, "models": lines})
    return found


def kept_figures() -> dict[str, Figures] | None:
    """What `count_all` kept, without loading PyTorch; None if the models have changed since."""
    content: Any = None
    with contextlib.suppress(OSError, ValueError):
        content = read_json(_kept())
    try:
        if content["digest"] != _digest():
            return None
        lines = [{**line, "input": tuple(line["input"])} for line in content["models"]]
        return {line["name"]: Figures(**line) for line in lines}
    except (KeyError, TypeError):
        return None


def markdown(figures: Iterable[Figures]) -> str:
    """The table of `docs/models.md`."""
    header = (
        "model",
        "parameters here",
        "published",
        "in the paper",
        "multiply-adds",
        "input",
        "published by",
        "paper",
    )
    rows = [header, ("---", *["---:"] * 5, "---", "---")]
    for one in figures:
        theirs = "" if one.reference_parameters is None else f"{one.reference_parameters:,}"
        sizes = (f"{one.parameters:,}", theirs, one.figure, short(one.multiply_adds))
        reference = f"`{one.reference}`" if one.reference else ""
        rows.append((f"`{one.name}`", *sizes, input_text(one.input), reference, one.paper))
    return _INTRODUCTION + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def input_text(shape: tuple[int, ...]) -> str:
    """What a model was counted for: ``224 px`` a side, or ``128 tok``, tokens."""
    return f"{shape[-1]} px" if len(shape) == 3 else f"{shape[-1]} tok"


def short(number: int) -> str:
    """Three or four digits and a letter: 25,557,032 is ``25.56M``."""
    for limit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= limit:
            return f"{number / limit:.4g}{letter}"
    return str(number)


_INTRODUCTION = """\
# Models

Written by `orch list models --markdown > docs/models.md`; a test compares it with the code.

- **parameters here**: counted in our model with 1,000 classes, and three channels or a vocabulary
  of 10,000 tokens; where a text answers a text, the tokens are the classes. BERT and GPT-2 have
  the vocabularies they were published with, and two classes or the tokens.
- **published**: of the checkpoint that *published by* names, which our model loads.
- **in the paper**: the number that the paper itself states, where it states one.
- **multiply-adds**: for one sample of the size under *input*; a multiplication and the addition
  of its result are one. Convolutions, matrix products and attention count, nothing else.

Models without a paper are our own, or free forms of a published one.

"""


def _kept() -> Path:
    return cache_root() / "models.json"


def _digest() -> str:
    """Of everything that the numbers depend on: the models, the counting, PyTorch's formulas."""
    folders = [
        Path(str(one)).parent for one in (orchestrator.models.__file__, zoo.__file__, __file__)
    ]
    found = hashlib.sha256(importlib.metadata.version("torch").encode())
    for path in (path for folder in folders for path in sorted(folder.rglob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()
