"""The cluster files, checked with Ray's own rules; nothing is started."""

import re
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "cluster").glob("*.yaml"))
COMMANDS = (
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def commands(config):
    return [command for name in COMMANDS for command in config.get(name, [])]


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def file(request, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray notes a local cluster's hosts there
    return request.param


@pytest.fixture
def config(file):
    return yaml.safe_load(file.read_text())


def test_there_are_files_for_a_cloud_and_for_own_machines():
    assert [path.name for path in FILES] == ["gpu.yaml", "onprem.yaml"]


def test_ray_accepts_it(config):
    validate_config(prepare_config(config))


def test_head_says_how_to_start_it_and_what_it_needs(file):
    head = file.read_text().split("\n\n")[0]
    assert f"ray up cluster/{file.name}" in head
    assert "# Needs: " in head and re.search(r"\bCosts\b", head)


def test_every_command_is_sound_shell(config):
    for command in commands(config):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_orch_is_never_installed_by_its_bare_name(config):
    installs = [command for command in commands(config) if re.search(r"pip install", command)]
    assert any("orch-*.whl" in command for command in installs)
    for command in installs:
        assert not re.search(r"(^|\s)['\"]?orch(\[|[=<>~]|['\"]?(\s|$))", command), command


def test_tokens_are_on_and_the_dashboard_is_not_public(config):
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
    head = next(command for command in starts if "--head" in command)
    assert "--dashboard-host=127.0.0.1" in head
    assert any(path.endswith("auth_token") for path in config["file_mounts"])


def test_nodes_get_the_ray_that_was_tested(config):
    pins = [
        pin for command in commands(config) for pin in re.findall(r"ray\[.*?\]==([\d.]+)", command)
    ]
    assert pins == [ray.__version__]


def test_gpu_workers_grow_from_none():
    config = yaml.safe_load((ROOT / "cluster" / "gpu.yaml").read_text())
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"])
    assert gpu["resources"]["GPU"] == 1
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0}
