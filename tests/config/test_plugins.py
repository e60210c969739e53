"""Users' own parts join the registries, the file, the schema and the lists."""

import sys
from pathlib import Path

import pytest

from orchestrator.config import base
from orchestrator.config.load import derive, dump_yaml, load_config
from orchestrator.config.plugins import _entry_points, load_plugins
from orchestrator.errors import ConfigError

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
FILE = """\
name: x
plugins: [example_parts.orch]
data: {source: {type: example_stripes, path: here}}
model: {type: example_mlp, hidden: 8}
task: {type: classify, loss: {type: example_margin, margin: 0.5}}
optimizer: {type: example_lion, lr: 0.01}
"""


@pytest.fixture(autouse=True)
def leave_no_trace(monkeypatch):
    """What a test registers or imports is gone after it."""
    entries = {kind: dict(known) for kind, known in base._ENTRIES.items()}
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    _entry_points.cache_clear()
    yield
    _entry_points.cache_clear()
    for kind, known in entries.items():
        base._ENTRIES[kind].clear()
        base._ENTRIES[kind].update(known)
    for name in set(sys.modules) - modules:
        if name.split(".")[0] in ("example_parts", "mine", "installed_parts"):
            del sys.modules[name]


@pytest.fixture
def path(tmp_path):
    """An experiment beside the example package, as a user would have it."""
    (tmp_path / "example_parts").symlink_to(EXAMPLE / "example_parts")
    path = tmp_path / "f.yaml"
    path.write_text(FILE)
    return path


def test_a_plugin_beside_the_file_joins(path):
    config = load_config(path)
    assert config.model.model_dump()["hidden"] == 8
    assert config.data.source.path == str(path.parent / "here")
    assert "example_mlp" in base.names("model")
    assert derive(config, {"model.hidden": 16}).model.hidden == 16
    with pytest.raises(ConfigError, match="unknown key for 'example_mlp'; did you mean 'hidden'"):
        derive(config, {"model.hiden": 16})


def test_a_plugin_in_the_current_folder_joins(path, tmp_path, monkeypatch):
    far = tmp_path / "far"
    far.mkdir()
    (far / "f.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    assert load_config("far/f.yaml").model.type == "example_mlp"


def test_an_override_can_bring_the_plugin(path):
    path.write_text("name: x\ndata: {source: {type: digits}}\nmodel: {type: resnet18}\n")
    config = load_config(path, ["model.type=example_mlp", "plugins=[example_parts.orch]"])
    assert config.model.type == "example_mlp"


def test_a_plugins_file_survives_a_round_trip(path):
    config = load_config(path)
    again = path.with_name("again.yaml")
    again.write_text(dump_yaml(config))
    assert load_config(again) == config


def test_its_parts_are_built_and_learn(path, tmp_path):
    import torch

    from orchestrator.losses import build_loss
    from orchestrator.networks import build_network
    from orchestrator.optim.optimizers import build_optimizer

    config = load_config(path)
    data = base.build("source", config.data.source, cache=tmp_path)
    images = torch.from_numpy(data.train.inputs["image"]).permute(0, 3, 1, 2).float() / 255
    label = torch.from_numpy(data.train.targets["label"])
    torch.manual_seed(0)
    model = build_network(config.model, outputs=2, shape=(1, 8, 8))
    loss, optimizer = build_loss(config.task.loss), build_optimizer(config.optimizer, model)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(model(images), label)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] == 0 < values[0]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "there is no module 'mine'; it must be installed, or stand beside this file"),
        ("import no_such_library", "importing 'mine' failed: No module named 'no_such_library'"),
        ("def f(:", "importing 'mine' failed: SyntaxError"),
        ("raise SystemExit(3)", "importing 'mine' failed: SystemExit: 3"),
        (
            "from orchestrator.config.base import Part, part\n"
            "@part('model', 'resnet18', build=print)\nclass Mine(Part): pass\n",
            "model 'resnet18' is registered by orchestrator.config.zoo.resnet already",
        ),
    ],
)
def test_a_plugin_that_does_not_import(path, code, said):
    path.write_text(FILE.replace("example_parts.orch]", "example_parts.orch,\n  mine]"))
    if code:
        path.with_name("mine.py").write_text(code)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    (problem,) = caught.value.problems
    assert (problem.where, problem.key) == (f"{path}:3", "plugins.1")
    assert said in problem.message


@pytest.mark.parametrize("name", ["", "a-b", "../x", "a..b", ".a", "a/b", "a b"])
def test_names_that_are_no_module(name):
    with pytest.raises(ConfigError, match="is not a module's name"):
        load_plugins([name])


def test_a_folder_does_not_hide_installed_packages(tmp_path):
    (tmp_path / "json.py").write_text("raise ImportError('hidden')")
    load_plugins(["json"], [tmp_path])
    assert sys.path.index(str(tmp_path)) > 0


def install(folder, code):
    """A package with an entry point, as pip leaves it."""
    (folder / "installed_parts.py").write_text(code)
    info = folder / "installed_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: installed-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[orch.plugins]\nparts = installed_parts\n")
    sys.path.append(str(folder))


def test_installed_packages_join_by_their_entry_point(tmp_path):
    install(
        tmp_path,
        "from orchestrator.config.base import part\n"
        "from orchestrator.config.model import Model\n"
        "@part('model', 'installed', build=print)\n"
        "class Installed(Model):\n    'A part.'\n",
    )
    load_plugins([])
    assert "installed" in base.names("model")


def test_a_broken_installed_package_is_named(tmp_path):
    install(tmp_path, "1 / 0")
    with pytest.raises(ConfigError, match=r"ZeroDivisionError.*package 'installed-parts'"):
        load_plugins([])
