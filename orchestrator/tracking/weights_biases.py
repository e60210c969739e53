"""Weights & Biases, told by a thread of its own so that training never waits for it."""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import queue
import secrets
import socket
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.config.training import WandbConfig
from orchestrator.files import finite, read_json, write_json
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import EventLog
from orchestrator.tracking.base import Artifact, artifact_of

PROBE_S = 3.0
"""How long a server may take to accept a connection before the run is kept offline."""
INIT_S = 20
"""How long a server may take to begin a run."""
FINISH_S = 30.0
"""How long the end of a run may wait for its upload."""

Call = Callable[[Any], None]
"""One thing to tell W&B, given its run."""

_lost: set[str] = set()
"""Servers that were given up in this process: later runs are kept offline at once."""


class WandbTracker:
    """One W&B run.

    Its id is kept in the run folder, so that a restart continues it. Without a key, or with a
    server that does not answer, the run is kept offline in ``logs/wandb``, to be sent by
    ``wandb sync``. Whatever fails is noted once in `events.jsonl`, and training goes on.
    """

    def __init__(self, config: WandbConfig, paths: RunPaths) -> None:
        self._config, self._paths = config, paths
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._server = ""
        self._failed = threading.Event()
        self._held: tuple[int, dict[str, float]] | None = None

    def start(
        self, config: Mapping[str, Any], *, name: str, group: str | None, job_type: str
    ) -> None:
        """See `Tracker`."""
        identity: dict[str, Any] = {
            "id": _run_id(self._paths),
            "name": name,
            "group": group,
            "job_type": job_type,
            "project": self._config.project,
            "entity": self._config.entity,
            "tags": list(self._config.tags) or None,
            "config": finite(config),
        }
        self._thread = threading.Thread(
            target=self._work, args=(identity,), name="wandb", daemon=True
        )
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float], *, epoch: float) -> None:
        """See `Tracker`."""
        line = {**values, "epoch": epoch}
        self._calls.put(lambda run: self._hold(run, step, line))

    def summary(self, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        kept = dict(values)
        self._calls.put(lambda run: self._summarise(run, kept))

    def use(self, artifact: Artifact) -> None:
        """See `Tracker`. Offline, where W&B links nothing, the configuration names the input."""
        self._calls.put(lambda run: _use(run, artifact))

    def finish(self, state: str, outputs: Sequence[Artifact] = ()) -> None:
        """See `Tracker`. Waits for the upload, but never longer than `FINISH_S`."""
        if self._thread is None:
            return
        model = artifact_of(self._paths) if state == "done" and not outputs else None
        for artifact in [*outputs, *([model] if model else [])]:
            self._calls.put(partial(_log_artifact, artifact))
        self._calls.put(lambda run: self._close(run, state))
        self._calls.put(None)
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            _lost.add(self._server)
            self._note(f"{self._server} is too slow; the end of the run was not sent")
        self._thread = None

    # --- the thread ------------------------------------------------------------------------

    def _work(self, identity: Mapping[str, Any]) -> None:
        try:
            run = self._begin(identity)
        except Exception as error:
            self._note(f"{type(error).__name__}: {error}")
            return
        while (call := self._calls.get()) is not None:
            try:
                call(run)
            except Exception as error:
                self._note(f"{type(error).__name__}: {error}")

    def _begin(self, identity: Mapping[str, Any]) -> Any:
        import wandb

        # Set before the first run, or the login would still print.
        settings = wandb.setup(settings=wandb.Settings(silent=True)).settings
        self._server = str(settings.base_url)
        mode, why = choose_mode(self._config.mode, self._server)
        if mode == "online":
            try:
                return self._init(wandb, identity, mode, resume="allow")
            except Exception as error:
                mode, why = "offline", f"{type(error).__name__}: {error}"
                _lost.add(self._server)
        if why:
            self._note(why)
        return self._init(wandb, identity, mode)

    def _init(
        self, wandb: Any, identity: Mapping[str, Any], mode: str, resume: str | None = None
    ) -> Any:
        folder = self._paths.logs
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {
            "silent": True,
            "console": "off",
            "init_timeout": INIT_S,
            "finish_timeout": FINISH_S / 2,
            # The command line, packages and git remotes may tell more than the user means to.
            "x_disable_meta": True,
            "x_save_requirements": False,
            "disable_git": True,
            "disable_code": True,
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        settings = wandb.Settings(**known)
        # A run that still uploads must not be taken for this one.
        return wandb.init(
            **identity,
            mode=mode,
            resume=resume,
            dir=str(folder),
            reinit="create_new",
            settings=settings,
        )

    def _hold(self, run: Any, step: int, values: Mapping[str, float]) -> None:
        # W&B takes each step once, so what belongs to one step is gathered first.
        if self._held is not None and self._held[0] == step:
            self._held[1].update(values)
            return
        self._flush(run)
        self._held = (step, dict(values))

    def _flush(self, run: Any) -> None:
        if self._held is not None:
            step, values = self._held
            self._held = None
            run.log(values, step=step, commit=True)

    def _summarise(self, run: Any, values: Mapping[str, float | str]) -> None:
        # Every logged line overwrites the summary, so the last one goes before it.
        self._flush(run)
        run.summary.update(values)

    def _close(self, run: Any, state: str) -> None:
        self._summarise(run, {"state": state})
        run.finish(exit_code=1 if state == "failed" else 0)

    def _note(self, why: str) -> None:
        if self._failed.is_set():
            return
        self._failed.set()
        where = self._paths.logs / "wandb"
        message = f"W&B: {why}; training goes on, `wandb sync {where}/*run-*` sends it later"
        with contextlib.suppress(Exception):
            events = EventLog(self._paths.events)
            events.record("wandb", message)
            events.close()


def choose_mode(asked: str, server: str) -> tuple[str, str]:
    """Whether a run is sent to a server, and if not, why.

    Args:
        asked: auto, online, offline or disabled. `auto` follows ``WANDB_MODE`` where it is set,
            and is else online if a key is found.
        server: its address.

    Returns:
        The mode, and the reason for not being online where the user may not expect it.
    """
    if asked == "auto":
        asked = os.environ.get("WANDB_MODE", "auto")
    if asked not in ("auto", "online"):
        return ("disabled" if asked == "disabled" else "offline"), ""
    if not find_key(server):
        return "offline", "there is no key for it (WANDB_API_KEY, or `wandb login`)"
    if server in _lost:
        return "offline", f"{server} did not answer before"
    problem = _unreachable(server)
    if problem:
        return "offline", f"{server} can't be reached ({problem})"
    return "online", ""


def find_key(server: str) -> bool:
    """Whether W&B would find a key by itself: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path.home()
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [home / ".netrc", home / "_netrc"]
    for file in files:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            entry = netrc.netrc(str(file)).authenticators(urlsplit(server).netloc)
            if entry and entry[2]:
                return True
    return False


def _unreachable(server: str) -> str:
    parts = urlsplit(server)
    if parts.scheme in urllib.request.getproxies() or not parts.hostname:
        return ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=PROBE_S).close()
    except OSError as error:
        return str(error)
    return ""


def _run_id(paths: RunPaths) -> str:
    file = paths.logs / "wandb.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(file)["id"])
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = secrets.token_hex(8)
    write_json(file, {"format": 1, "id": fresh})
    return fresh


def _use(run: Any, artifact: Artifact) -> None:
    inputs = [*json.loads(json.dumps(run.config.get("inputs", []))), artifact.name]
    run.config.update({"inputs": inputs}, allow_val_change=True)
    if not run.offline and not run.disabled:
        run.use_artifact(_wandb_artifact(artifact))


def _log_artifact(artifact: Artifact, run: Any) -> None:
    run.log_artifact(_wandb_artifact(artifact))


def _wandb_artifact(artifact: Artifact) -> Any:
    import wandb

    made = wandb.Artifact(artifact.name, artifact.kind)
    for name, path in artifact.files.items():
        made.add_file(str(path), name=name)
    return made
