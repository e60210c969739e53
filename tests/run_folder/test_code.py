"""Runs that were made with their user's own modules: found, copied, and used in another folder."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.config.user_code import (
    kept_code,
    local_modules,
    named_modules,
    use_kept_code,
)
from orchestrator.run_folder.code import keep_code
from orchestrator.run_folder.paths import RunPaths

FILES = {
    "near.py": "import helper\nfrom far import parts\n",
    "helper.py": "import json, numpy\nVALUE = 1\n",
    "far/__init__.py": "",
    "far/parts.py": "def late():\n    from . import inner\n    import later\n",
    "far/inner.py": "TARGET = 'texts.nets:Net'\n",
    "far/names.txt": "a b",
    "far/.env": "SECRET=1",
    "far/runs/old/config.yaml": "name: old",
    "later.py": "",
    "texts/nets.py": "class Net: pass",
    "unused.py": "",
    "broken.py": "def f(:",
}
NEEDED = [
    "far/__init__.py",
    "far/inner.py",
    "far/names.txt",
    "far/parts.py",
    "helper.py",
    "later.py",
    "near.py",
    "texts/nets.py",
]


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch):
    """What a test imports, and where from, is gone after it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("near", "helper", "far", "later", "texts"):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path):
    """A user's folder with modules that import each other, found as one beside a file is."""
    folder = tmp_path / "project"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sys.path.append(str(folder))
    return folder


def test_what_is_imported_is_found_and_what_is_installed_is_not(project):
    found = local_modules(["near", "torch.nn", "json", "orchestrator.api", "nothing", "broken"])
    names = ["broken.py", "far", "helper.py", "later.py", "near.py", "texts"]
    assert [str(path.relative_to(project)) for path in found] == names


def test_a_folder_that_pip_installed_into_is_no_users(project):
    (project / "something-1.0.dist-info").mkdir()
    assert local_modules(["near"]) == []


def test_a_file_names_plugins_and_imported_networks():
    from orchestrator.config.load import config_from_mapping

    target = {"type": "choice", "values": ["b.nets:Wide", "c:Deep"]}
    config = config_from_mapping(
        {
            "name": "x",
            "plugins": ["json"],
            "data": {"source": {"type": "digits"}},
            "model": {"type": "import", "target": "a.nets:Net"},
            "sweep": {"trials": 2, "space": {"model.target": target}},
            "distill": {"set": {"model.target": "d:Small"}},
        }
    )
    assert named_modules(config) == ("json", "a.nets", "b.nets", "c", "d")


def test_a_run_keeps_what_it_needs_and_no_more(project, tmp_path):
    paths = RunPaths(tmp_path / "run")
    assert keep_code(paths, ["torch"]) == []
    assert not paths.code.exists()
    assert keep_code(paths, ["near"]) == []
    kept = kept_code(paths.root)
    assert sorted(kept.files) == NEEDED
    for name, digest in kept.files.items():
        data = (paths.code / name).read_bytes()
        assert data == (project / name).read_bytes()
        assert digest == hashlib.sha256(data).hexdigest()
    assert kept.origins == (project,)
    assert sorted(p.name for p in (paths.code / "far").iterdir()) == sorted(
        name.removeprefix("far/") for name in NEEDED if name.startswith("far/")
    )


def test_a_resumed_run_says_what_changed_and_keeps_the_new(project, tmp_path):
    paths = RunPaths(tmp_path / "run")
    keep_code(paths, ["near"])
    (project / "helper.py").write_text("VALUE = 2\n")
    (project / "near.py").write_text("import helper\n")
    assert keep_code(paths, ["near"]) == NEEDED  # two are new, and the rest is gone
    assert sorted(kept_code(paths.root).files) == ["helper.py", "near.py"]
    assert not (paths.code / "far" / "parts.py").exists()
    assert keep_code(paths, ["near"]) == []


def value_in(folder, root, code="print(helper.VALUE, helper.__file__)"):
    """What a fresh process, working in a folder, imports for a run."""
    program = (
        "import sys, pathlib\nfrom orchestrator.config.user_code import use_kept_code\n"
        f"use_kept_code(pathlib.Path({str(root)!r}))\nimport helper\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    value, file = done.stdout.split()
    return value, Path(file)


def test_originals_are_used_while_they_are_as_they_were_and_copies_after(project, tmp_path):
    paths, elsewhere = RunPaths(tmp_path / "run"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    keep_code(paths, ["near"])
    assert value_in(elsewhere, paths.root) == ("1", project / "helper.py")
    (project / "helper.py").write_text("VALUE = 2\n")
    assert value_in(elsewhere, paths.root) == ("1", paths.code / "helper.py")
    shutil.rmtree(project)
    assert value_in(elsewhere, paths.root) == ("1", paths.code / "helper.py")
    # Another module of the name, where the user works now, does not hide the run's.
    (elsewhere / "helper.py").write_text("VALUE = 3\n")
    assert value_in(elsewhere, paths.root) == ("1", paths.code / "helper.py")


def test_a_moved_run_folder_brings_its_code(project, tmp_path):
    paths = RunPaths(tmp_path / "run")
    keep_code(paths, ["near"])
    moved = tmp_path / "moved"
    shutil.move(paths.root, moved)
    shutil.rmtree(project)
    assert value_in(tmp_path, moved) == ("1", moved / "code" / "helper.py")


def test_another_module_that_is_loaded_already_stays_with_a_warning(project, tmp_path, caplog):
    import helper

    paths = RunPaths(tmp_path / "run")
    keep_code(paths, ["near"])
    use_kept_code(paths.root)
    assert not caplog.records
    (project / "helper.py").write_text("VALUE = 2\n")
    use_kept_code(paths.root)
    (record,) = caplog.records
    assert "helper.py is loaded from elsewhere and differs" in record.getMessage()
    assert helper.VALUE == 1


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"origins": 3, "files": {}}'])
def test_a_damaged_manifest_is_no_manifest(tmp_path, content):
    paths = RunPaths(tmp_path / "run")
    paths.code.mkdir(parents=True)
    (paths.code / "code.json").write_text(content)
    before = list(sys.path)
    use_kept_code(paths.root)
    assert kept_code(paths.root) is None
    assert sys.path == before


def test_a_run_that_is_repeated_from_its_own_copies_knows_where_they_came_from(project, tmp_path):
    paths, again = RunPaths(tmp_path / "run"), RunPaths(tmp_path / "run-2")
    keep_code(paths, ["near"])
    sys.path.remove(str(project))
    (project / "helper.py").write_text("VALUE = 2\n")
    use_kept_code(paths.root)
    sys.path.remove(str(project))
    assert keep_code(paths, ["near"]) == []
    assert kept_code(paths.root).origins == (project,)
    assert keep_code(again, ["near"]) == []
    content = json.loads((again.code / "code.json").read_text())
    assert content["origins"] == [str(paths.code)]
    assert content["files"] == kept_code(paths.root).files
