"""The table of what is served, as the operator publishes it and gateways follow it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.serve.cards import ModelCard
from orchestrator.serve.wire.place import Place


@dataclass(frozen=True)
class VersionSpec:
    """A version that is asked for.

    Attributes:
        root: the folder of its run or ensemble.
        sha256: by file, what the registry says that the folder holds: it is checked before the
            model is loaded; nothing is checked where it is empty. A file that lies elsewhere, as
            an ensemble's members do, has an absolute path.
    """

    name: str
    version: str
    root: str
    sha256: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """What its replicas are called."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Started:
    """What replicas say once they are ready.

    Attributes:
        executor: what runs the network, in words.
    """

    card: ModelCard
    max_batch: int
    executor: str = ""


@dataclass(frozen=True)
class VersionEntry:
    """A version that is ready."""

    spec: VersionSpec
    started: Started


@dataclass(frozen=True)
class ModelEntry:
    """A model's versions, the one added last at the end, and who of them answers.

    Attributes:
        rule: its section of `serve.traffic`.
        state: what the rule has learnt, the same for every gateway.
        learns: whether the operator wants to know how requests went.
    """

    versions: Mapping[str, VersionEntry] = field(default_factory=dict)
    rule: Mapping[str, Any] = field(default_factory=lambda: {"type": "latest"})
    state: Mapping[str, Any] = field(default_factory=dict)
    learns: bool = False


@dataclass(frozen=True)
class Event:
    """Something that was changed, by a person or by a rule.

    Attributes:
        time: seconds since 1970.
        model: whose.
        message: a sentence for people.
    """

    time: float
    model: str
    message: str


@dataclass(frozen=True)
class Table:
    """Everything that is served; never changed, but replaced by one of a higher generation.

    Attributes:
        events: the last changes, the newest at the end.
        places: where replicas listen, by `VersionSpec.key`.
    """

    generation: int = 0
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    places: Mapping[str, tuple[Place, ...]] = field(default_factory=dict)
