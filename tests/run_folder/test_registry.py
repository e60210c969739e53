"""Names, numbers, stages; files that must be what they were; several writers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import cli, run
from orchestrator.errors import RunFolderError, UserError
from orchestrator.files import write_json
from orchestrator.run_folder.paths import RunPaths, resolve_target
from orchestrator.run_folder.registry import Registry
from tests.serve.serving import make_ensemble, make_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run with its papers, and a sweep whose ensemble has two trials."""
    folder = tmp_path / "runs"
    make_run(folder / "hats", 0)
    write_json(folder / "hats" / "env.json", {"code": {"commit": "c" * 40, "modified": True}})
    best = {"step": 5, "value": 0.9, "metrics": {"val/accuracy": 0.9}}
    status = {"state": "done", "digest": "e" * 64, "best": best}
    write_json(folder / "hats" / "status.json", status)
    trials = [make_run(folder / "shoes" / "trials" / f"00{n}", n) for n in range(2)]
    sweep = make_ensemble(folder / "shoes" / "ensemble", trials, [0.5, 0.5])
    content = json.loads((sweep / "ensemble.json").read_text())
    for member in content["members"]:
        member["path"] = "../trials/" + Path(member["path"]).name
    write_json(sweep / "ensemble.json", content)
    write_json(folder / "shoes" / "sweep.json", {"format": 1})
    return folder


@pytest.fixture
def registry(runs) -> Registry:
    return Registry(runs)


def add(registry: Registry, runs: Path, path: str = "hats", name: str = "hats") -> str:
    return registry.register(resolve_target(runs / path, runs), name).key


def add_many(registry: Registry, runs: Path, count: int) -> None:
    for n in range(count):
        make_run(runs / f"run{n}", n)
        add(registry, runs, f"run{n}")


def test_a_version_knows_where_it_comes_from(registry, runs):
    key = add(registry, runs)
    version = registry.find(key)
    assert key == "hats@1" and version.stage == "none" and version.path == "hats"
    assert set(version.files) == {"model.safetensors", "model.json"}
    assert version.origin == {
        "source": "hats",
        "sweep": None,
        "members": [],
        "config_digest": "e" * 64,
        "data_digest": "d" * 64,
        "split_digest": "5" * 64,
        "commit": "c" * 40,
        "modified": True,
        "metrics": {"val/accuracy": 0.9},
    }


def test_an_ensemble_has_its_members_files(registry, runs):
    version = registry.find(add(registry, runs, "shoes/ensemble", "shoes"))
    members = [f"../trials/00{n}/model.{kind}" for n in (0, 1) for kind in ("safetensors", "json")]
    assert sorted(version.files) == sorted(["ensemble.json", *members])
    assert version.origin["sweep"] == "shoes"
    assert version.origin["members"] == ["shoes/trials/000", "shoes/trials/001"]
    assert version.origin["metrics"] == {"select/accuracy": 0.5, "select/nll": 1.0}
    (runs / "shoes" / "trials" / "001" / "model.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"shoes@1 consists of .*trials/001/model"):
        registry.checked("shoes")


def test_references(registry, runs):
    add_many(registry, runs, 3)
    assert registry.find("hats").version == 3  # the newest, while none is in production
    registry.promote("hats@2")
    registry.promote("hats@1", "staging")
    found = {text: registry.find(text).version for text in ("hats", "hats@1", "hats@production")}
    assert found == {"hats": 2, "hats@1": 1, "hats@production": 2}
    assert registry.find("hats@staging").version == 1
    with pytest.raises(RunFolderError, match=r"1 \(staging\), 2 \(production\), 3 \(none\)"):
        registry.find("hats@9")
    with pytest.raises(RunFolderError, match="did you mean 'hats'"):
        registry.find("hat")
    target = resolve_target("registry:hats@production", runs)
    assert (target.kind, target.path) == ("run", (runs / "run1").resolve())


def stages(registry: Registry) -> list[str]:
    return [one.stage for one in registry.versions("hats")]


def test_promotion_archives_and_rollback_brings_back(registry, runs):
    add_many(registry, runs, 3)
    with pytest.raises(RunFolderError, match="in production before"):
        registry.rollback("hats")
    for n in (1, 2, 3):
        registry.promote(f"hats@{n}")
    assert stages(registry) == ["archived", "archived", "production"]
    assert registry.rollback("hats").version == 2
    assert stages(registry) == ["archived", "production", "archived"]
    assert registry.rollback("hats").version == 1
    with pytest.raises(RunFolderError, match="in production before"):
        registry.rollback("hats")
    assert stages(registry) == ["production", "archived", "archived"]
    registry.promote("hats@3")
    registry.promote("hats@3", "archived")
    assert registry.rollback("hats").version == 3


@pytest.mark.parametrize("damage", ["change", "remove"])
def test_changed_files_are_refused_by_name(registry, runs, damage):
    add_many(registry, runs, 2)
    registry.promote("hats@1")
    registry.promote("hats@2")
    model = RunPaths(runs / "run0").model
    if damage == "change":
        model.write_bytes(model.read_bytes()[:-1] + b"\x07")
    else:
        model.unlink()
    expected = "was changed since hats@1" if damage == "change" else "hats@1 consists of"
    for use in (
        lambda: registry.checked("hats@1"),
        lambda: resolve_target("registry:hats@1", runs),
        lambda: registry.promote("hats@1"),
        lambda: registry.rollback("hats"),
    ):
        with pytest.raises(RunFolderError, match=expected):
            use()
    assert stages(registry) == ["archived", "production"]


def test_what_can_not_be_registered(registry, runs):
    add(registry, runs)
    with pytest.raises(RunFolderError, match="registered already, as hats@1"):
        add(registry, runs)
    (runs / "empty").mkdir()
    write_json(runs / "empty" / "status.json", {})
    with pytest.raises(RunFolderError, match="no trained model"):
        add(registry, runs, "empty")
    for name in ("../hats", "", "a b", ".hidden", "x" * 129):
        with pytest.raises(UserError, match="letters, digits"):
            add(registry, runs, name=name)
    assert [path.name for path in registry.folder.glob("*.json")] == ["hats.versions.json"]


def test_the_folder_can_move(registry, runs, tmp_path):
    add(registry, runs, "shoes/ensemble", "shoes")
    shutil.move(runs, tmp_path / "moved")
    version, target = Registry(tmp_path / "moved").checked("shoes@1")
    assert target.path == (tmp_path / "moved" / version.path).resolve()


def test_a_registry_is_no_run(registry, runs):
    for name in ("sweep", "status", "trials", "model", "config.yaml"):
        add(registry, runs, name=name)
    assert RunPaths(registry.folder).kind is None


def test_several_writers_lose_nothing(registry, runs):
    for n in range(24):
        shutil.copytree(runs / "hats", runs / f"copy{n}")
    code = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.run_folder.paths import resolve_target\n"
        "from orchestrator.run_folder.registry import Registry\n"
        "runs = Path(sys.argv[1])\n"
        "for name in sys.argv[2:]:\n"
        "    Registry(runs).register(resolve_target(runs / name, runs), 'many')\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(runs), *(f"copy{n}" for n in part)])
        for part in (range(12), range(12, 24))
    ]
    assert [one.wait(200) for one in writers] == [0, 0]
    versions = registry.versions("many")
    assert [one.version for one in versions] == list(range(1, 25))
    assert {one.path for one in versions} == {f"copy{n}" for n in range(24)}
    assert not [path for path in registry.folder.iterdir() if path.name.endswith(".tmp")]


def test_a_damaged_file_is_named(registry, runs):
    add(registry, runs)
    (registry.folder / "hats.versions.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"hats\.versions\.json is damaged"):
        registry.find("hats")


# --- the command line ------------------------------------------------------------------------


def orch(runs: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli, ["registry", *arguments, "--runs-dir", str(runs)])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_commands(runs):
    assert "nothing is registered" in orch(runs, "list")
    assert "registered hats@1 (none): hats" in orch(runs, "register", "hats")
    said = orch(runs, "register", "shoes", "--name", "hats", "--stage", "production")
    assert "registered hats@2 (production): shoes/ensemble" in said
    assert "hats@1 is production now" in orch(runs, "promote", "hats@1")
    assert "hats@2 is production again" in orch(runs, "rollback", "hats")
    listed = json.loads(orch(runs, "list", "--json"))
    assert [(one["version"], one["stage"]) for one in listed] == [
        (1, "archived"),
        (2, "production"),
    ]
    lines = orch(runs, "list", "hats").splitlines()
    assert len(lines) == 3 and lines[2].split()[:3] == ["hats@2", "production", "ensemble"]
    shown = orch(runs, "show", "hats@1")
    assert "commit: " + "c" * 40 in shown and "val/accuracy 0.9" in shown
    assert "all files are as they were registered" in shown
    RunPaths(runs / "hats").model.unlink()
    shown = json.loads(orch(runs, "show", "hats@1", "--json"))
    assert not shown["intact"] and "it is gone" in shown["problem"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("register", "nothing"),
        ("register", "hats", "--name", "../x"),
        ("promote", "hats@1"),
        ("promote", "hats@1", "--stage", "live"),
        ("rollback", "hats"),
        ("show", "hats"),
    ],
)
def test_mistakes_end_with_2_and_one_message(runs, arguments, capsys):
    assert run(["registry", *arguments, "--runs-dir", str(runs)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and said.strip()


def test_other_commands_take_registered_models(runs, capsys):
    orch(runs, "register", "hats", "--name", "best")
    image = runs.parent / "image.npy"
    import numpy as np

    np.save(image, np.zeros((1, 12, 12), np.uint8))
    assert run(["predict", "registry:best", str(image), "--json", "--runs-dir", str(runs)]) == 0
    by_name = json.loads(capsys.readouterr().out)
    assert run(["predict", "hats", str(image), "--json", "--runs-dir", str(runs)]) == 0
    assert by_name["inputs"] == json.loads(capsys.readouterr().out)["inputs"]
    assert by_name["model"] == "best"
    RunPaths(runs / "hats").model.write_bytes(b"x")
    assert run(["predict", "registry:best", str(image), "--runs-dir", str(runs)]) == 2
    assert "was changed since best@1" in capsys.readouterr().err
