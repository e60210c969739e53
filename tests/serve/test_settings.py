"""From the command line and files to what a server obeys; everything wrong is said first."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from orchestrator.cli import run
from orchestrator.cli.serve import _rule_text
from orchestrator.config.serving import Latest, Replicas, ServeConfig, Weighted
from orchestrator.errors import ConfigError, RunFolderError, UserError
from orchestrator.run_folder.paths import resolve_target
from orchestrator.run_folder.registry import Registry
from orchestrator.serve.deployable import read_arguments
from orchestrator.serve.server import Door, check_models
from orchestrator.serve.settings import find_all
from orchestrator.serve.targets import Served, find_loadable, find_served
from orchestrator.serve.tls import Certificate
from tests.serve.live import free_ports
from tests.serve.ray_server import make_certificate
from tests.serve.serving import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for n, name in enumerate(("hats", "caps", "a=b")):
        make_run(folder / name, n)
    make_run(folder / "wide", 3, shape=(1, 16, 16))
    registry = Registry(folder)
    for name in ("hats", "caps"):
        registry.register(resolve_target(folder / name, folder), "hats")
    registry.promote("hats@1")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    make_certificate(made)
    return made.certificate, made.key


# --- names -----------------------------------------------------------------------------------


def names(runs: Path, *targets: str) -> list[tuple[str, str, str]]:
    return [(one.name, one.version, one.root.name) for one in find_served(targets, runs)]


def test_names_and_versions_of_targets(runs):
    assert names(runs, "hats", "x=caps", "x@2=hats", str(runs / "a=b")) == [
        ("hats", "1", "hats"),
        ("x", "1", "caps"),
        ("x", "2", "hats"),
        ("a-b", "1", "a=b"),
    ]


def test_registered_models_have_their_number(runs):
    assert names(runs, "registry:hats", "registry:hats@2", "x=registry:hats@2") == [
        ("hats", "1", "hats"),
        ("hats", "2", "caps"),
        ("x", "2", "caps"),
    ]
    (one,) = find_served(["registry:hats@production"], runs)
    assert {name for name, _ in one.sha256} == {"model.safetensors", "model.json"}
    assert find_served(["y@live=registry:hats"], runs)[0].version == "live"


def test_one_name_and_version_for_two_models_is_refused(runs):
    with pytest.raises(UserError, match=r"x@VERSION=TARGET"):
        find_served(["x=hats", "x=caps"], runs)
    with pytest.raises(RunFolderError, match="registry has no hats@9"):
        find_served(["registry:hats@9"], runs)


def test_what_comes_over_http_stays_below_the_runs(runs, tmp_path):
    assert find_loadable("hats", runs).root == runs / "hats"
    (runs / "link").symlink_to(runs / "hats")
    for text in ("link", "../x", "/etc", "hats/../caps", "~", "", "a=b", "hats/"):
        with pytest.raises(UserError):
            find_loadable(text, runs)
    (runs / "link").unlink()


# --- files and overrides ---------------------------------------------------------------------


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "serve:\n"
        "  replicas: {min: 1, max: 3}\n"
        "  models:\n"
        "    - {name: shop, version: '1', target: hats}\n"
        "    - {name: shop, version: '2', target: 'registry:hats@2'}\n"
        "  traffic:\n"
        "    shop: {type: weighted, weights: {'1': 9, '2': 1}}\n"
    )
    return path


def test_a_file_of_the_section_alone(runs, file):
    served, config = find_all(["caps"], runs, file, ["serve.precision=auto"], cpus=2.0)
    assert [(one.name, one.version) for one in served] == [
        ("caps", "1"),
        ("shop", "1"),
        ("shop", "2"),
    ]
    assert config.replicas == Replicas(min=1, max=3) and config.cpus == 2
    assert config.precision == "auto" and config.traffic["shop"].type == "weighted"
    assert find_all([], runs, file)[0] == served[1:]
    _, alone = find_all(["hats"], runs, None, ["serve.max_batch=8"], replicas=2)
    assert (alone.max_batch, alone.replicas) == (8, 2)


def test_a_whole_experiment_is_a_file_too(runs, tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(
        "name: x\ndata: {source: {type: synthetic}}\nmodel: {type: resnet18}\n"
        "serve: {tolerance: 0.02, tls: {cert: c.pem, key: ~/k.pem}}\n"
    )
    _, config = find_all(["hats"], runs, path)
    assert config.tolerance == 0.02
    assert config.tls.cert == str(tmp_path / "c.pem") and config.tls.key == str(
        Path.home() / "k.pem"
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("serve: {replica: 2}", [], r"serve.yaml:1.*replica"),
        ("serve:\n  traffic: {x: {type: wighted}}", [], r"serve.yaml:2.*weighted"),
        ("sever: {}", [], "serve"),
        ("serve: {}", ["serve.precision=fp8"], "override 'serve.precision=fp8'"),
        ("serve: {}", ["serve.nothing=1"], "nothing"),
        ("serve: {replicas: {min: 3, max: 1}}", [], "min <= max"),
    ],
)
def test_mistakes_in_a_file_name_their_place(runs, tmp_path, text, overrides, message):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        find_all(["hats"], runs, path, overrides)


def test_nothing_to_serve(runs):
    with pytest.raises(UserError, match=r"serve\.models"):
        find_all([], runs)


# --- before anything starts --------------------------------------------------------------------


def test_traffic_and_versions_must_fit(runs, file):
    served, config = find_all([], runs, file)
    check_models(served, config)
    with pytest.raises(UserError, match=r"names versions \['2'\].*add shop@2=TARGET"):
        check_models(served[:1], config)
    with pytest.raises(UserError, match="of no model"):
        check_models([Served("other", runs / "hats")], config)
    wide = [Served("x", runs / "hats"), Served("x", runs / "wide", "2")]
    with pytest.raises(UserError, match="share input shape and labels"):
        check_models(wide, find_all(["hats"], runs)[1])


@pytest.mark.parametrize(
    ("door", "open_control"),
    [
        (Door(), True),
        (Door("localhost", admin_digests=("a",)), True),
        (Door(key_digests=("k",)), False),
        (Door("0.0.0.0", insecure=True), False),
    ],
)
def test_changes_without_a_key_are_for_this_machine_only(tmp_path, door, open_control):
    settings = door.settings(ServeConfig(), tmp_path)
    assert settings.open_control == open_control
    assert settings.admin_digests == door.admin_digests
    assert settings.models_root == str(tmp_path.resolve())


def test_traffic_in_a_line():
    rule = Weighted(weights={"1": 3, "2": 0.5}, shadows=("3",)).model_dump(mode="json")
    assert _rule_text(rule) == "weighted, shadows 3, weights 1:3 2:0.5"
    assert _rule_text(Latest(sticky=False).model_dump(mode="json")) == "latest, sticky False"


def orch(capsys, runs: Path, *arguments: str) -> tuple[int, str]:
    code = run(["serve", *arguments, "--runs-dir", str(runs)])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.err + said.out


def test_mistakes_end_with_2_before_anything_starts(runs, pair, tmp_path, capsys):
    certificate, key = map(str, pair)
    other = tmp_path / "other.pem"
    other.write_text("nonsense")
    damaged = make_run(tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"x")
    (port,) = free_ports(1)
    for arguments, message in [
        ((), "name a TARGET"),
        (("nothing",), "not a run"),
        (("x=hats", "x=caps"), "two models"),
        (("registry:hats@7",), "hats@7"),
        ((str(damaged),), "does not fit"),
        (("hats", "serve.replicas=0"), "replicas"),
        (("hats", "--config", str(tmp_path / "missing.yaml")), "missing.yaml"),
        (("hats", "--tls-cert", certificate), "go together"),
        (("hats", "--tls-cert", certificate, "--tls-key", str(other)), "no pair"),
        (("hats", "--tls-cert", key, "--tls-key", certificate), "no pair"),
        (("hats", "--tls-cert", str(tmp_path / "none"), "--tls-key", key), "can't be read"),
        (("hats", "--host", "0.0.0.0"), "--api-key-file"),
        (("hats", "--admin-key-file", str(other)), "16 characters"),
        (("hats", "serve.traffic={hats: {type: weighted, weights: {'3': 1}}}"), "names versions"),
    ]:
        assert (found := orch(capsys, runs, *arguments, "--port", str(port)))[0] == 2, arguments
        assert message in found[1], (arguments, found[1])


# --- for `serve deploy` ------------------------------------------------------------------------


def test_the_written_file_is_what_ray_takes(runs, file, tmp_path, capsys):
    from ray.serve.schema import ServeDeploySchema

    keys = tmp_path / "keys"
    keys.write_text("k" * 24)
    written = tmp_path / "deploy.yaml"
    arguments = ["--config", str(file), "caps", "--api-key-file", str(keys)]
    code, said = orch(capsys, runs, *arguments, "--write-config", str(written))
    assert code == 0 and f"serve deploy {written}" in said
    content = yaml.safe_load(written.read_text())
    assert "k" * 24 not in written.read_text()
    (application,) = ServeDeploySchema.model_validate(content).applications
    assert application.import_path == "orchestrator.serve.app:deployable"
    models, config, settings, state = read_arguments(content["applications"][0]["args"])
    served, expected = find_all(["caps"], runs, file)
    assert [one["root"] for one in models] == [str(one.root.resolve()) for one in served]
    assert models[2]["sha256"] == served[2].sha256 != ()
    assert config == expected and len(settings.key_digests) == 1
    assert settings.models_root == str(runs.resolve()) and state.parent == runs.resolve()
    # Other models, another state: a server does not go on with what another file asked for.
    orch(capsys, runs, "caps", "--write-config", str(written))
    other = yaml.safe_load(written.read_text())["applications"][0]["args"]["state"]
    assert other != str(state)
