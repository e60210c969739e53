"""What the slow tests said when they last ran, and how long each took.

``make test-slow`` runs them, then ``python -m benchmarks.slow_tests REPORT.xml…`` on pytest's
reports (``--junitxml``) and keeps what that prints in ``results/test_slow.json``. Several reports
are of one run in parts; a test that is in two counts as in the later one.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.common import machine


def outcomes(report: Path) -> dict[str, dict[str, Any]]:
    """Each test's outcome and seconds, set-up and clean-up included, by its name.

    Of a test that did not pass, the first line of why not.
    """
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        said: dict[str, Any] = {"outcome": "passed", "seconds": float(case.get("time", 0))}
        for tag, outcome in (("skipped", "skipped"), ("failure", "failed"), ("error", "error")):
            if (element := case.find(tag)) is not None:
                expected = element.get("type") == "pytest.xfail"
                reason = element.get("message", "").partition("\n")[0]
                said |= {"outcome": "failed as expected" if expected else outcome, "reason": reason}
        found[f"{case.get('classname')}.{case.get('name')}"] = said
    return found


def started(report: Path) -> str:
    """When a run began, as pytest wrote it."""
    return next(ElementTree.parse(report).iter("testsuite")).get("timestamp", "")


def summary(reports: list[Path]) -> dict[str, Any]:
    """Everything that is kept of a run."""
    reports = sorted(reports, key=started)
    tests = {name: said for report in reports for name, said in outcomes(report).items()}
    return {
        "started": started(reports[0]),
        "outcomes": dict(Counter(said["outcome"] for said in tests.values())),
        "seconds": round(sum(said["seconds"] for said in tests.values()), 1),
        "seconds by file": _by_file(tests),
        "tests": dict(sorted(tests.items())),
    }


def _by_file(tests: dict[str, dict[str, Any]]) -> dict[str, float]:
    totals: defaultdict[str, float] = defaultdict(float)
    for name, said in tests.items():
        totals[name.partition("[")[0].rpartition(".")[0]] += said["seconds"]
    return {file: round(seconds, 1) for file, seconds in sorted(totals.items())}


def main() -> None:
    """Reads reports and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT.xml")
    given = parser.parse_args()
    document = {"benchmark": "slow_tests", "machine": machine(), "results": summary(given.reports)}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
