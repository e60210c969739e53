"""All that there is to say of one model: its options, its source, its stages and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.analysis.model_summary import Input, Summary, describe
from orchestrator.analysis.model_table import usual_input
from orchestrator.config.base import find
from orchestrator.config.check import validate
from orchestrator.config.model import Model
from orchestrator.config.overrides import apply_changes, parse_override
from orchestrator.config.plugins import load_plugins
from orchestrator.config.yaml import Document
from orchestrator.errors import ConfigError, UserError
from orchestrator.models.registry import Published, names, options_of, published


@dataclass(frozen=True)
class Option:
    """A key of the model's section; `default` is None too where the variant decides."""

    name: str
    value: Any
    default: Any
    about: str


@dataclass(frozen=True)
class ModelCard:
    """One model, with the options and the input that it was looked at with.

    Attributes:
        about: one line.
        published: what is known of it from outside; None for a user's model or one of our own.
    """

    name: str
    about: str
    published: Published | None
    input: Input
    options: tuple[Option, ...]
    summary: Summary


@dataclass(frozen=True)
class Asked:
    """What of a model's input is not as usual.

    Attributes:
        size: (height, width) of the images, in pixels.
        channels: of the images.
        length: tokens of a text.
        vocabulary: how many tokens there are.
        classes: outputs of the head.
    """

    size: tuple[int, int] | None = None
    channels: int | None = None
    length: int | None = None
    vocabulary: int | None = None
    classes: int | None = None

    def of(self, section: Model) -> Input:
        """The input of a section's network.

        Raises:
            UserError: if images are asked for and it reads texts, or the other way round.
        """
        usual = usual_input(section)
        takes = "images" if usual.vocabulary is None else "tokens"
        useless = ("length", "vocabulary") if takes == "images" else ("size", "channels")
        for name in useless:
            if getattr(self, name) is not None:
                raise UserError(f"{section.type} reads {takes}, so leave --{name} out")
        shape: tuple[int, ...]
        if takes == "images":
            shape = (self.channels or usual.shape[0], *(self.size or usual.shape[1:]))
        else:
            shape = (self.length,) * len(usual.shape) if self.length else usual.shape
        vocabulary = self.vocabulary or usual.vocabulary
        classes = self.classes or (vocabulary if usual.per_token else None) or usual.classes
        return replace(usual, shape=shape, classes=classes, vocabulary=vocabulary)


def model_card(
    name: str,
    overrides: Sequence[str] = (),
    *,
    asked: Asked | None = None,
    plugins: Sequence[str] = (),
) -> ModelCard:
    """Builds a model on the meta device and says what it consists of.

    Args:
        name: what stands behind `model.type` in a file.
        overrides: ``key=value`` texts with keys of the `model:` section.
        asked: what it reads; by default what `usual_input` says.
        plugins: modules that register users' own models.

    Raises:
        UserError: for an unknown name, a wrong option, or an input that the model does not take.
    """
    load_plugins(plugins)
    entry = find("model", name)
    section = _section(name, overrides)
    reads = (asked or Asked()).of(section)
    ours = name in names()
    return ModelCard(
        name,
        entry.summary,
        published(name) if ours else None,
        reads,
        tuple(_options(section, set(options_of(name)) if ours else None)),
        describe(section, reads),
    )


def _section(name: str, overrides: Sequence[str]) -> Model:
    """The section as a file would give it, with everything that is wrong in it said."""
    source = {"source": {"type": "synthetic"}}
    document = Document({"name": "show", "data": source, "model": {"type": name}})
    keys = [text if text.startswith("model.") else f"model.{text}" for text in overrides]
    if named := [key for key in keys if key.startswith("model.type=")]:
        raise UserError(f"the model is {name}, so leave {named[0].removeprefix('model.')} out")
    problems = apply_changes(document, [parse_override(key) for key in keys])
    config, findings = validate(document.values)
    problems += [finding.problem(document) for finding in findings]
    if problems or config is None:
        raise ConfigError(problems)
    assert isinstance(config.model, Model)
    return config.model


def _options(section: Model, known: set[str] | None) -> list[Option]:
    """The section's own keys; of a section for several models, those that this one takes."""
    fields = type(section).model_fields
    return [
        Option(
            field.alias or key,
            getattr(section, key),
            None if field.is_required() else field.get_default(call_default_factory=True),
            " ".join((field.description or "").split()),
        )
        for key, field in fields.items()
        if key not in Model.model_fields and (known is None or key in known)
    ]
