"""What `make test-slow` keeps, from reports that pytest really wrote."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.slow_tests import summary

ROOT = Path(__file__).parents[2]
TESTS = """
import time, pytest

@pytest.mark.parametrize("seconds", [0.0, 0.2])
def test_waits(seconds):
    time.sleep(seconds)

def test_wrong():
    assert 1 == 2, "one is\\nnot two"

def test_absent():
    pytest.skip("no such machine")

@pytest.fixture
def broken():
    raise OSError("no disk")

def test_needs(broken):
    pass

@pytest.mark.xfail(reason="not ours to mend", strict=True)
def test_known():
    assert 1 == 2
"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> list[Path]:
    """All tests, and then one of them again."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "test_some.py").write_text(TESTS)
    reports = []
    for name, chosen in (("all", "test"), ("again", "wrong")):
        reports.append(folder / f"{name}.xml")
        subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"),
                *(f"--junitxml={reports[-1]}", "-k", chosen, folder / "test_some.py"),
            ],
            cwd=folder,
            check=False,
            stdout=subprocess.DEVNULL,
        )
    return reports


def test_each_test_has_its_outcome_and_seconds(reports):
    kept = summary(reports[:1])
    tests = {name.rpartition("test_some.")[2]: said for name, said in kept["tests"].items()}
    assert {name: said["outcome"] for name, said in tests.items()} == {
        "test_waits[0.0]": "passed",
        "test_waits[0.2]": "passed",
        "test_wrong": "failed",
        "test_absent": "skipped",
        "test_needs": "error",
        "test_known": "failed as expected",
    }
    counts = {"passed": 2, "failed": 1, "skipped": 1, "error": 1, "failed as expected": 1}
    assert kept["outcomes"] == counts
    assert tests["test_known"]["reason"] == "not ours to mend"
    assert tests["test_waits[0.2]"]["seconds"] >= 0.2
    assert kept["seconds"] == pytest.approx(sum(s["seconds"] for s in tests.values()), abs=0.05)
    assert list(kept["seconds by file"].values()) == [kept["seconds"]]
    assert tests["test_wrong"]["reason"] == "AssertionError: one is"
    assert "no such machine" in tests["test_absent"]["reason"]


def test_the_later_of_two_reports_counts(reports):
    kept = summary(list(reversed(reports)))
    assert len(kept["tests"]) == 6
    assert kept == summary(reports)
    assert kept["started"] < summary(reports[1:])["started"]


def test_the_command_prints_json_with_the_machine(reports):
    command = [sys.executable, "-m", "benchmarks.slow_tests", *map(str, reports)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    document = json.loads(done.stdout)
    assert document["results"] == summary(reports)
    assert document["machine"]["cores"] >= 1
