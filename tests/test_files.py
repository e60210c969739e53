"""Files that are shipped for people: sweeps, the demo, the list of packages."""

import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.config.load import load_config

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_file_loads_and_opens_with_its_command(path):
    command = "sweep" if load_config(path).sweep else "train"
    head = path.read_text().split("version:")[0]
    assert f"orch {command} sweeps/{path.name}" in head
    assert all(word in head for word in ("Command", "Hardware", "Result"))


def test_the_demos_second_choice_of_data_is_a_valid_file():
    script = (ROOT / ".ci/demo").read_text()
    words = shlex.split(script.split("data=(")[2].split(")\nfi")[0])
    config = load_config(ROOT / "sweeps/efficientnet.yaml", words)
    assert config.data.source.type == "digits"


def test_wheel_and_checkout_hold_the_same_packages():
    """pyproject.toml lists packages by hand, because folders and import names differ."""
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = set()
    for folder, package in (
        ("orchestrator", "orchestrator"),
        ("models", "orchestrator.models"),
        ("serve", "orchestrator.serve"),
    ):
        for init in (ROOT / folder).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join((package, *parts)))
    assert set(listed) == found


def test_a_wheel_holds_models_and_serve_under_their_import_names(tmp_path):
    # From a copy: a build writes into the tree that it builds.
    wanted = ("pyproject.toml", "README.md", "orchestrator", "models", "serve")
    for name in wanted:
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, "dist", "."], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"orchestrator/models/resnet.py", "orchestrator/serve/app/fleet.py"} <= set(names)
    assert not [name for name in names if name.startswith(("models/", "serve/", "tests/"))]
