from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and nothing remembered from another one."""
    from orchestrator.data import memory

    folder = tmp_path / "cache"
    monkeypatch.setenv("ORCH_CACHE", str(folder))
    memory._memory.clear()
    yield folder
    memory._memory.clear()
