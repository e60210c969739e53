"""What the doctor makes of nodes that fit together, and of those that do not."""

import time
from dataclasses import replace

import pytest

from orchestrator.doctor.nodes import NodeFacts, check_nodes, clock_skew, describe_node

NODE = NodeFacts(
    "10.0.0.1",
    {"python": "3.11.7", "torch": "2.13.0", "orch": "0.1.0"},
    8,
    (2**33, 2**34),
    (),
    10**12,
    True,
    "",
)
OTHER = replace(NODE, name="10.0.0.2")


def states(nodes, skews, folder):
    return {check.name: (check.state, check.detail) for check in check_nodes(nodes, skews, folder)}


def test_equal_nodes_are_healthy(tmp_path):
    found = states([NODE, OTHER], [0.0, 0.2], tmp_path)
    assert {state for state, _ in found.values()} == {"ok"}
    assert "torch 2.13.0" in found["versions"][1]


@pytest.mark.parametrize(
    ("change", "check", "state", "says"),
    [
        ({"versions": NODE.versions | {"torch": "2.9.0"}}, "versions", "failed",
         "10.0.0.2 has torch 2.9.0, 10.0.0.1 has 2.13.0"),
        ({"versions": NODE.versions | {"orch": "missing"}}, "versions", "failed",
         "10.0.0.2 lacks orch"),
        ({"sees": False}, "storage", "failed", "10.0.0.2 does not see the driver's file"),
        ({"wrote": "Read-only file system"}, "storage", "failed", "Read-only file system"),
        ({"disk_free": 10**9}, "disk", "warning", "1 GB free"),
        ({"gpus": ("T4",)}, "devices", "warning", "unlike GPUs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_node(tmp_path, change, check, state, says):
    found = states([NODE, replace(OTHER, **change)], [0.0, 0.0], tmp_path)
    assert found[check][0] == state
    assert says in found[check][1]
    assert {one for name, (one, _) in found.items() if name != check} == {"ok"}


def test_a_clock_that_is_off_fails(tmp_path):
    found = states([NODE, OTHER], [0.0, 30.5], tmp_path)
    assert found["clocks"][0] == "failed"
    assert "10.0.0.2 by 30.5 s" in found["clocks"][1]


@pytest.mark.parametrize("offset", [-20.0, 20.0])
def test_skew_is_what_waiting_cannot_explain(offset):
    assert clock_skew(lambda: time.time() + offset) == pytest.approx(20.0, abs=0.5)


def test_slow_answers_are_not_taken_for_skew():
    def slowly():
        time.sleep(0.05)
        return time.time()

    assert clock_skew(slowly, rounds=2) == 0.0


def test_a_node_describes_itself(tmp_path):
    (tmp_path / "token").write_text("seen")
    facts = describe_node(str(tmp_path), "token", "here")
    assert facts.name == "here"
    assert facts.sees
    assert not facts.wrote
    assert facts.cpus >= 1
    assert facts.versions["torch"] not in ("", "missing")


def test_a_place_that_is_not_there_is_said(tmp_path):
    facts = describe_node(str(tmp_path / "absent"), "token")
    assert facts.disk_free is None
    assert not facts.sees
    assert "No such file" in facts.wrote
