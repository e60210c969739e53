"""Stages on a cluster that was there before: results, failures, deaths, interruption."""

import time
from pathlib import Path

import pytest
import ray

from orchestrator.errors import DataError, ResourceError, TrialError
from orchestrator.host import Resources
from tests.on_ray import work

pytestmark = pytest.mark.ray
ONE, PAIR = Resources(), Resources(workers=2)


def test_stage_gets_arguments_threads_and_device(host):
    found = host.submit(work.describe, {"a": 1}, Resources(cpus=2)).result()
    assert (found["a"], found["rank"], found["world_size"]) == (1, 0, 1)
    assert (found["threads"], found["device"], found["cwd"]) == (2, "cpu", str(Path.cwd()))


def test_generator_is_run_to_its_return_value(host):
    assert host.submit(work.generated, {"steps": 3}, ONE).result() == "done"


def test_workers_are_warm_until_one_fails(host):
    first = host.submit(work.describe, {}, ONE).result()["pid"]
    assert host.submit(work.describe, {}, ONE).result()["pid"] == first
    with pytest.raises(TrialError, match=r"^ValueError: bad luck \(traceback in ") as caught:
        host.submit(work.fail, {}, ONE).result()
    trace = Path(str(caught.value).split("traceback in ")[1].rstrip(")"))
    assert 'raise ValueError("bad luck")' in trace.read_text()
    assert host.submit(work.describe, {}, ONE).result()["pid"] != first


def test_an_error_of_the_user_keeps_its_type_and_text(host):
    with pytest.raises(DataError, match=r"^no such folder: /data; give data\.source\.path$"):
        host.submit(work.fail_for_the_user, {}, ONE).result()


def test_a_result_that_cannot_travel_is_an_error(host):
    with pytest.raises(TrialError, match="pickle"):
        host.submit(work.unpicklable_result, {}, ONE).result()


def test_more_work_than_slots_is_queued(host):
    pending = [host.submit(work.describe, {"n": n}, ONE) for n in range(5)]
    found = [stage.result() for stage in pending]
    assert [result["n"] for result in found] == list(range(5))
    assert all(stage.done() for stage in pending)
    assert len({result["pid"] for result in found}) <= 2


def test_shapes_take_turns_on_the_same_cores(host):
    # An idle worker of one shape must not keep the other one waiting for ever.
    for cpus in (1, 2, 1):
        found = host.submit(work.describe, {}, Resources(cpus=cpus)).result()
        assert found["threads"] == cpus


def test_too_much_is_refused_before_anything_waits(host):
    with pytest.raises(
        ResourceError, match=r"64 workers with 1 CPU cores each.* 2 CPU cores and 0 GPUs"
    ):
        host.submit(work.describe, {}, Resources(workers=64))
    with pytest.raises(ResourceError, match="1 GPUs each"):
        host.capacity(Resources(gpus=1))
    assert host.capacity(ONE) == 2
    assert host.capacity(PAIR) == 1


def test_a_dead_worker_is_replaced_and_the_call_resumed(make_host, tmp_path):
    host = make_host(retry_arguments={"resume": True})
    found = host.submit(work.die_once, {"marker": str(tmp_path / "died")}, ONE).result()
    assert found["resume"] and (tmp_path / "died").exists()


def test_a_worker_that_dies_again_is_an_error_that_says_how(host):
    with pytest.raises(TrialError, match=r"^the worker died \(process \d+.*\): killed"):
        host.submit(work.die, {}, ONE).result()


def test_cancel_lets_the_work_end_in_order(host, tmp_path):
    stage = host.submit(work.work_until_interrupted, {"folder": str(tmp_path)}, ONE)
    _wait_for(tmp_path / "started")
    stage.cancel()
    assert stage.result() == "interrupted"
    assert (tmp_path / "checkpoint").exists()


def test_close_interrupts_what_runs_and_may_be_called_twice(make_host, tmp_path):
    host = make_host()
    stage = host.submit(work.work_until_interrupted, {"folder": str(tmp_path)}, ONE)
    _wait_for(tmp_path / "started")
    host.close()
    host.close()
    assert stage.done() and (tmp_path / "checkpoint").exists()


def test_group_computes_together_and_gives_rank_0s_result(host):
    found = host.submit(work.summed, {}, PAIR).result()
    assert found == {"sum": 3, "rank": 0, "world_size": 2, "threads": 1, "cwd": str(Path.cwd())}


@pytest.mark.slow
def test_group_names_the_rank_that_raised(host):
    with pytest.raises(TrialError, match=r"^rank 1: ValueError: bad luck \(traceback in "):
        host.submit(work.fail, {"rank": 1}, PAIR).result()


@pytest.mark.slow
def test_group_is_started_again_after_a_worker_died(make_host, tmp_path):
    host = make_host(retry_arguments={"resume": True})
    marker = tmp_path / "died"
    found = host.submit(work.die_once, {"marker": str(marker), "rank": 1}, PAIR).result()
    assert found["resume"] and marker.exists()


@pytest.mark.slow
def test_a_lost_node_s_work_goes_on_elsewhere(cluster, make_host, tmp_path):
    host = make_host(retry_arguments={"resume": True})
    node = cluster.add_node(num_cpus=4)
    cluster.wait_for_nodes()
    started = tmp_path / "started"
    # Only the new node has four cores for one worker.
    four = Resources(cpus=4)
    stage = host.submit(work.where, {"started": str(started)}, four)
    _wait_for(started)
    assert started.read_text() == node.node_id
    cluster.remove_node(node, allow_graceful=False)
    other = cluster.add_node(num_cpus=4)
    try:
        assert stage.result() == other.node_id
    finally:
        host.close()
        cluster.remove_node(other)


def test_nothing_is_left_behind(host, tmp_path):
    host.submit(work.describe, {}, ONE).result()
    host.close()
    deadline = time.monotonic() + 120
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()
