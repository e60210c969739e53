"""Opening a run folder for writing: fresh, resumed, or refused with the way out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import config_from_mapping, load_config
from orchestrator.config.yaml import parse_yaml
from orchestrator.errors import ConfigError, RunFolderError
from orchestrator.files import read_json, write_json, write_text
from orchestrator.run_folder.environment import data_changes, environment_changes
from orchestrator.run_folder.lease import Lease, lease_holder
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import EventLog
from orchestrator.run_folder.status import Status, StatusFile, utc_now

Difference = Callable[[ExperimentConfig, ExperimentConfig], list[str]]
"""Compares an old and a new configuration: one line for each value that differs."""


@dataclass
class OpenedRun:
    """A run folder that this process may write, until it is closed.

    Attributes:
        resumed: whether an earlier process began the run.
        notes: what the user should be told.
    """

    paths: RunPaths
    lease: Lease
    status: StatusFile
    events: EventLog
    resumed: bool
    notes: list[str] = field(default_factory=list)

    def reconfigure(self, digest: str, config_yaml: str) -> None:
        """Replaces the configuration by a more resolved one, such as `auto` made concrete."""
        write_text(self.paths.config, config_yaml)
        self.status.redigest(digest)

    def close(self) -> None:
        """Gives the folder up for other writers; a second call does nothing."""
        self.events.close()
        self.lease.release()

    def __enter__(self) -> OpenedRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_run(
    paths: RunPaths,
    *,
    digest: str,
    config_yaml: str,
    resume: bool,
    difference: Difference | None = None,
    kind: Literal["run", "sweep"] = "run",
) -> OpenedRun:
    """Takes a run folder for writing and notes in it that the run is on.

    Args:
        digest: of everything in the configuration that changes results.
        config_yaml: the resolved configuration. A resumed run keeps the one it began with.
        resume: go on with an unfinished run; with none there, begin one and say so.
        difference: names what differs when the digests do.

    Raises:
        RunFolderError: if another process writes the folder, if the run is finished, if it is
            unfinished and `resume` is not asked for, or if it has another digest.
    """
    asked = _Request(digest, config_yaml, resume, kind, difference)
    _make_folder(paths.root)
    # Whoever resumes may be the next attempt of a worker that died with its node.
    lease = Lease(paths.lease, wait=resume)
    try:
        before = _existing(paths)
        if before is not None:
            _check(paths, before, asked)
        return _begin(paths, lease, before, asked)
    except BaseException:
        lease.release()
        raise


def place_run(runs_dir: Path, name: str, config_path: Path | None, resume: bool) -> RunPaths:
    """The folder for an experiment called `name`.

    Repeating a run from its own ``config.yaml`` goes beside it, to ``<name>-2`` and so on,
    unless the run itself is to be resumed.
    """
    paths = RunPaths(runs_dir / name)
    if resume or config_path is None or config_path.resolve() != paths.config.resolve():
        return paths
    return next_name(paths)


def next_name(paths: RunPaths) -> RunPaths:
    """The first of ``<name>-2``, ``<name>-3``, … that is free."""
    base, _, number = paths.name.rpartition("-")
    if not (number.isdigit() and paths.root.with_name(base or "-").is_dir()):
        base = paths.name
    numbered = (paths.root.with_name(f"{base}-{count}") for count in itertools.count(2))
    return RunPaths(next(root for root in numbered if not root.exists()))


def run_state(paths: RunPaths) -> str:
    """The state for people: as `status.json` says, or ``stopped`` when its process is gone."""
    status = Status.read(paths.status)
    if status is None:
        return "unknown"
    if status.state == "running" and lease_holder(paths.lease) is None:
        return "stopped"
    return status.state


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(
            f"could not make {root}: {error.strerror}; choose another --runs-dir"
        ) from error


def _existing(paths: RunPaths) -> Status | None:
    status = Status.read(paths.status)
    # A configuration alone is what a process leaves that was killed while it began.
    if status is None and (paths.model_json.exists() or paths.kind not in (None, "run")):
        raise RunFolderError(f"{paths.root} holds {_a(paths.kind)} already; choose name=…")
    return status


@dataclass(frozen=True)
class _Request:
    digest: str
    config_yaml: str
    resume: bool
    kind: Literal["run", "sweep"]
    difference: Difference | None


def _check(paths: RunPaths, before: Status, asked: _Request) -> None:
    if before.kind != asked.kind:
        raise RunFolderError(f"{paths.root} holds {_a(before.kind)} already; choose name=…")
    if before.finished and not asked.resume:
        why = before.why or before.state
        raise RunFolderError(f"{paths.root} holds a finished {asked.kind} ({why}); choose name=…")
    if before.digest != asked.digest:
        lines = _differences(paths, asked)
        lines = lines or [f"digest: {before.digest[:12]} -> {asked.digest[:12]}"]
        raise another_configuration(paths, asked.kind, lines)
    if before.finished:
        raise RunFolderError(f"{paths.root} is finished, nothing to resume; choose name=…")
    if not asked.resume:
        raise RunFolderError(
            f"{paths.root} holds an unfinished {asked.kind} (step {before.step}); "
            "add --resume to go on with it, or choose name=…"
        )


def another_configuration(
    paths: RunPaths, kind: Literal["run", "sweep"], lines: list[str]
) -> RunFolderError:
    """The refusal of a folder that was begun with other values, each difference a line."""
    rest = [f"… and {len(lines) - 20} more"] if len(lines) > 20 else []
    return RunFolderError(
        "\n  ".join(
            [
                f"the {kind} in {paths.root} was begun with another configuration; "
                "choose name=…, or undo these changes and add --resume:",
                *lines[:20],
                *rest,
            ]
        )
    )


def other_data(
    paths: RunPaths, kind: Literal["run", "sweep"], data_digest: str, split_digest: str
) -> RunFolderError | None:
    """The refusal of a folder that was begun with other data; None if they are the same.

    Their paths, and so the configuration, may well be as they were.
    """
    if not paths.env.exists():
        return None
    changes = data_changes(read_json(paths.env), data_digest, split_digest)
    if not changes:
        return None
    return RunFolderError(
        f"the data changed since the {kind} in {paths.root} began; choose name=… for a new {kind}, "
        "or bring the data back and add --resume:\n  " + "\n  ".join(changes)
    )


def note_environment(opened: OpenedRun, content: dict[str, Any]) -> None:
    """Writes `env.json`; a resumed run or sweep notes what is no longer as it was.

    Args:
        content: as `describe_environment` gives it.
    """
    path = opened.paths.env
    if opened.resumed and path.exists():
        for change in environment_changes(read_json(path), content):
            opened.events.record("environment", f"changed since the run began: {change}")
    write_json(path, content)


def _differences(paths: RunPaths, asked: _Request) -> list[str]:
    if asked.difference is None:
        return []
    try:
        new = config_from_mapping(parse_yaml(asked.config_yaml, "config.yaml").values)
        return asked.difference(load_config(paths.config, kept_code=False), new)
    except (ConfigError, OSError):
        # A file of another version, or one whose plugins are gone.
        return []


def _begin(paths: RunPaths, lease: Lease, before: Status | None, asked: _Request) -> OpenedRun:
    notes = []
    if before is None:
        # The status comes last: a folder without one was never begun.
        write_text(paths.config, asked.config_yaml)
        status = Status("running", asked.kind, asked.digest, started=utc_now())
        if asked.resume:
            notes.append(f"{paths.root} holds nothing to resume; starting afresh")
    else:
        restarts = before.restarts + 1
        status = replace(before, state="running", why="", ended=None, restarts=restarts)
    if lease.taken_from is not None:
        former = lease.taken_from
        notes.append(f"process {former.pid} on {former.host} ended without closing the run")
    events = EventLog(paths.events)
    events.record("resumed" if before else "started", "; ".join(notes), step=status.step)
    file = StatusFile(paths.status, status)
    return OpenedRun(paths, lease, file, events, before is not None, notes)


def _a(kind: str | None) -> str:
    return f"an {kind}" if kind == "ensemble" else f"a {kind}"
