"""A real W&B-compatible server, and processes that report to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

KEY = "local" + "0" * 40


class Server:
    """`openwandb` on a free port of this machine."""

    key = KEY

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--data-dir", str(folder)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "openwandb", "serve", *where], stdout=log, stderr=log
            )
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(self.url, timeout=10).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < end, "the server did not start"
                time.sleep(0.1)

    def rows(self, query: str, *values: object) -> list[tuple]:
        with sqlite3.connect(self.folder / "openwandb.db", timeout=180) as database:
            return database.execute(query, values).fetchall()

    def run(self, id: str) -> dict:
        query = "SELECT display_name, state, config_json, summary_json FROM runs WHERE run_id = ?"
        ((name, state, config, summary),) = self.rows(query, id)
        config, summary = json.loads(config), json.loads(summary)
        return {"name": name, "state": state, "config": config, "summary": summary}

    def history(self, id: str, key: str) -> list[tuple]:
        query = "SELECT step, value FROM metrics WHERE run_id = ? AND key = ? ORDER BY id"
        return self.rows(query, id, key)

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(timeout=180)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("openwandb"))
    yield started
    started.stop(signal.SIGKILL)


@pytest.fixture
def own_server(tmp_path):
    """A server that the test may break."""
    folder = tmp_path / "own-server"
    folder.mkdir()
    started = Server(folder)
    yield started
    started.stop(signal.SIGKILL)


@pytest.fixture
def start(tmp_path):
    """Starts Python code in a process of its own, with a bare W&B environment."""
    processes = []

    def start(code: str, *arguments: object, **settings: str) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                env={**inherited, **home, **settings},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def end():
    """Waits for a process; nothing may have been printed."""

    def end(process: subprocess.Popen, timeout: float = 200) -> None:
        out, err = process.communicate(timeout=timeout)
        assert (process.returncode, out, err) == (0, "", "")

    return end
