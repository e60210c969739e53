"""The file from which a restarted operator goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orchestrator.files import read_json, write_json
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import Event, Table, VersionSpec

FORMAT = 1


@dataclass(frozen=True)
class KeptModel:
    """What is kept of a model: its versions, its traffic section, what its judge has learnt."""

    specs: Sequence[VersionSpec]
    rule: Mapping[str, Any]
    memory: Mapping[str, Any]


@dataclass(frozen=True)
class State:
    """What `write_state` wrote."""

    generation: int
    models: Mapping[str, KeptModel]
    events: Sequence[Event]


def write_state(path: Path, table: Table, memories: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes a table and what was learnt, crash-atomically.

    Args:
        path: the file.
        table: what is served.
        memories: of judges, by model.
    """
    models = {
        name: {
            "rule": dict(entry.rule),
            "versions": [asdict(one.spec) for one in entry.versions.values()],
            "memory": dict(memories.get(name, {})),
        }
        for name, entry in table.models.items()
    }
    events = [asdict(one) for one in table.events]
    head = {"format": FORMAT, "generation": table.generation}
    write_json(path, head | {"models": models, "events": events})


def read_state(path: Path) -> State:
    """Reads it back.

    Raises:
        LoadError: if the file is another release's, or damaged.
    """
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        models = {
            name: KeptModel([_spec(spec) for spec in one["versions"]], one["rule"], one["memory"])
            for name, one in content["models"].items()
        }
        return State(content["generation"], models, [Event(**one) for one in content["events"]])
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path} is damaged ({error!r}); remove it to begin anew") from None


def _spec(content: Mapping[str, Any]) -> VersionSpec:
    pairs = tuple((str(path), str(digest)) for path, digest in content["sha256"])
    return VersionSpec(content["name"], content["version"], content["root"], pairs)
