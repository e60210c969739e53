"""Starting a cluster of our own and attaching to one."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray._raylet import GCS_AUTOSCALER_CLUSTER_CONFIG_KEY, GCS_AUTOSCALER_STATE_NAMESPACE
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig
from ray.experimental import internal_kv

from orchestrator.errors import ResourceError, UserError
from orchestrator.host import Resources
from orchestrator.launch.cluster import slots, start_or_attach

pytestmark = pytest.mark.ray

LOCAL = """
import json, sys
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_host import RayHost
from orchestrator.host import Resources

def look(worker):
    import my_plugin
    return my_plugin.NAME

sys.path.insert(0, sys.argv[1])
session = start_or_attach(cpus=1, modules=["my_plugin.parts"])
host = RayHost(session)
print(json.dumps([session.attached, host.submit(look, {}, Resources()).result()]))
host.close()
import ray
assert not ray.is_initialized()
"""


def test_own_cluster_is_quiet_finds_plugins_and_ends(tmp_path):
    package = tmp_path / "plugins" / "my_plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("NAME = 'mine'")
    (package / "parts.py").touch()
    script = tmp_path / "local.py"
    script.write_text(LOCAL)
    done = subprocess.run(
        [sys.executable, str(script), str(package.parent)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [False, "mine"]
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://10.0.0.1:10001", "on a node of the cluster with --address auto"),
        ("http://10.0.0.1:8265", "later"),
        ("nonsense", "use `auto` or `host:port`"),
    ],
)
def test_addresses_that_cannot_be_used_say_what_can(address, words):
    with pytest.raises(UserError, match=words):
        start_or_attach(address)


def test_nobody_at_the_address_is_said_within_seconds():
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"no Ray cluster answers at 127\.0\.0\.1:9.*--address"):
        start_or_attach("127.0.0.1:9")
    assert time.monotonic() - began < 10


def test_attached_session_shares_variables_and_leaves_the_cluster_up(cluster):
    script = """
import os, sys
os.environ["WANDB_PROJECT"] = "from-the-driver"
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_host import RayHost
from orchestrator.host import Resources
from tests.on_ray import work
session = start_or_attach(sys.argv[1])
assert session.attached
host = RayHost(session)
print(host.submit(work.environment, {"name": "WANDB_PROJECT"}, Resources()).result())
host.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, cluster.address],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=600,
    )
    assert done.stdout == "from-the-driver\n", done.stderr
    socket.create_connection(cluster.address.rsplit(":", 1), timeout=180).close()


TRAVELS = """
import shutil, sys
from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_host import RayHost
from orchestrator.host import Resources

def look(worker):
    import my_plugin.parts
    return my_plugin.parts.NAME

sys.path.append(sys.argv[2])
session = start_or_attach(sys.argv[1], modules=["my_plugin.parts"])
shutil.rmtree(sys.argv[2])  # as on a node that never had it
host = RayHost(session)
print(host.submit(look, {}, Resources()).result())
host.close()
"""


def test_a_users_modules_travel_with_those_that_they_import(cluster, tmp_path):
    project = tmp_path / "project"
    (project / "my_plugin").mkdir(parents=True)
    (project / "my_plugin" / "__init__.py").touch()
    (project / "my_plugin" / "parts.py").write_text("from my_helper import NAME")
    (project / "my_helper.py").write_text("NAME = 'mine'")
    done = subprocess.run(
        [sys.executable, "-c", TRAVELS, cluster.address, str(project)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=600,
    )
    assert done.stdout == "mine\n", done.stderr


def test_what_a_cluster_can_grow_to_is_counted_by_node(session):
    kinds = [NodeGroupConfig(resources={"CPU": cpus}, max_count=n) for cpus, n in ((4, 3), (8, 2))]
    config = ClusterConfig(node_group_configs=kinds).SerializeToString()
    place = {
        "key": GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
        "namespace": GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
    }
    internal_kv._internal_kv_put(value=config, **place)
    try:
        # Of 28 cores in all.
        found = {cpus: slots(Resources(cpus=cpus)) for cpus in (1, 3, 8, 9)}
    finally:
        internal_kv._internal_kv_del(**place)
    assert found == {1: 28, 3: 7, 8: 2, 9: 0}


ATTACH = """
import sys
from orchestrator.errors import ResourceError
from orchestrator.launch.cluster import start_or_attach
try:
    start_or_attach(sys.argv[1])
except ResourceError as error:
    print(error)
"""


def test_a_node_with_other_code_is_refused(cluster, tmp_path):
    other = tmp_path / "other" / "orchestrator"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("CHANGED = True")
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other.parent)})
    cluster.wait_for_nodes()
    try:
        done = subprocess.run(
            [sys.executable, "-c", ATTACH, cluster.address],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=600,
        )
    finally:
        cluster.remove_node(node)
    assert done.stdout.startswith("every node must run the same orch as this one"), done.stderr
    assert "install the same wheel on every node" in done.stdout


PLANNED = """
version: 1
name: planned
data: {source: {type: digits}}
model: {type: mlp, hidden: [32]}
scale: {workers: 2, gpus: 0}
"""


ON_A_LARGE_NODE = """
import os, sys
os.sched_getaffinity = lambda process: set(range(16))
from orchestrator import cli
sys.exit(cli.run(sys.argv[1:]))
"""


def plan_of(cluster, folder, *overrides: str) -> subprocess.CompletedProcess[str]:
    (folder / "planned.yaml").write_text(PLANNED)
    command = [sys.executable, "-c", ON_A_LARGE_NODE, "train", "planned.yaml", *overrides]
    return subprocess.run(
        [*command, "--dry-run", "--json", "--address", cluster.address],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=600,
    )


def test_a_plan_asks_the_nodes_for_their_cores_and_memory(cluster, tmp_path):
    """Whoever asks has more cores than any of them."""
    done = plan_of(cluster, tmp_path)
    assert done.returncode == 0, done.stderr
    room = json.loads(done.stdout)["memory"]["room"]
    head = cluster.head_node.node_ip_address
    assert room["workers"] == 2 and room["what"].endswith(f"node {head}")
    assert 0 < room["each"] < psutil.virtual_memory().total / 2
    refused = plan_of(cluster, tmp_path, "scale.cpus=64", "scale.workers=1")
    assert refused.returncode == 2 and "1 workers with 64 CPU cores each" in refused.stderr
