"""One cluster for all tests here: a head and, where a test adds them, further nodes."""

import logging
from collections.abc import Callable, Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from orchestrator.launch.cluster import start_or_attach
from orchestrator.launch.ray_host import RayHost


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": 10**8},
    )
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="session")
def session(cluster):
    session = start_or_attach(cluster.address)
    session.close = lambda: None  # the next test goes on with it
    return session


@pytest.fixture
def make_host(session, tmp_path) -> Iterator[Callable[..., RayHost]]:
    """Hosts that are closed after the test: their idle workers would hold the cores of the next."""
    hosts: list[RayHost] = []

    def make(**arguments) -> RayHost:
        hosts.append(RayHost(session, traces=tmp_path / "traces", **arguments))
        return hosts[-1]

    yield make
    for host in hosts:
        host.close()


@pytest.fixture
def host(make_host) -> RayHost:
    return make_host()
