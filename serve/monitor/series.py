"""The Prometheus series of versions: what is counted as it happens, and what is read at a scrape.

Each gateway process answers for itself; Prometheus adds them up. Labels are models and versions
that are served, never what clients send, and series of versions that are gone are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.serve.monitor.drift import STATES
from orchestrator.serve.monitor.metrics import SECONDS
from orchestrator.serve.monitor.recent import STAGES

Role = Literal["answers", "shadow", "canary"]
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_VERSION = ["model", "version"]


class VersionSeries:
    """Counts every request to a version as it ends."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._asked = Counter(
            "orch_version_requests",
            "Requests to a version; shadows get copies that nobody waits for",
            [*_VERSION, "role", "outcome"],
            registry=registry,
        )
        self._stages = Histogram(
            "orch_stage_seconds",
            "Seconds of each stage of an answered request",
            [*_VERSION, "stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "orch_batch_samples",
            "Samples in the forward pass that an answered request was part of",
            _VERSION,
            buckets=_BATCHES,
            registry=registry,
        )
        # Finding a series by its labels takes longer than counting.
        self._made: dict[tuple[str, str], list[Histogram]] = {}
        self._counted: dict[tuple[str, str, Role], Counter] = {}

    def failed(self, name: str, version: str, role: Role) -> None:
        """Counts a request that got no answer."""
        self._asked.labels(name, version, role, "failed").inc()

    def answered(
        self, name: str, version: str, role: Role, stages: tuple[float, ...], batch: int
    ) -> None:
        """Counts an answer.

        Args:
            stages: seconds of each of `STAGES`; NaN where one does not apply.
            batch: samples of its forward pass.
        """
        counted = self._counted.get((name, version, role))
        if counted is None:
            counted = self._asked.labels(name, version, role, "answered")
            self._counted[name, version, role] = counted
        counted.inc()
        made = self._made.get((name, version))
        if made is None:
            made = [self._stages.labels(name, version, stage) for stage in STAGES]
            made.append(self._batches.labels(name, version))
            self._made[name, version] = made
        for series, value in zip(made, (*stages, batch), strict=True):
            if value == value:
                series.observe(value)

    def forget(self, name: str, version: str) -> None:
        """Drops the series of a version that is gone."""
        self._made.pop((name, version), None)
        for key in [one for one in self._counted if one[:2] == (name, version)]:
            del self._counted[key]
        for metric in (self._asked, self._stages, self._batches):
            metric.remove_by_labels({"model": name, "version": version})


@dataclass(frozen=True)
class Reading:
    """What is read of one version at a scrape.

    Attributes:
        executor: what runs the network.
        drift: the state of the last window; None before the first.
        psi: by descriptor.
        confidence, accuracy, calibration_error: None before there is any.
        labelled: answers whose label came later.
    """

    name: str
    version: str
    role: Role
    executor: str
    share: float
    waiting: int
    drift: str | None
    psi: dict[str, float]
    confidence: float | None
    accuracy: float | None
    calibration_error: float | None
    labelled: int


class ReadSeries(Collector):
    """Gauges that are read when Prometheus asks.

    Args:
        read: every version that is served now.
        log: rows of the request log that were written and lost; None without a log.
    """

    def __init__(
        self, read: Callable[[], list[Reading]], log: Callable[[], tuple[int, int] | None]
    ) -> None:
        self._read, self._log = read, log

    def describe(self) -> Iterable[Metric]:
        """Nothing: it is read only when it is asked for."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The gauges of now."""
        readings = self._read()
        info = GaugeMetricFamily(
            "orch_version_info", "1 for each version", labels=[*_VERSION, "role", "executor"]
        )
        for one in readings:
            info.add_metric([one.name, one.version, one.role, one.executor], 1)
        yield info
        yield _gauge("orch_traffic_share", "Share of the model's requests", readings, _share)
        yield _gauge("orch_queue_samples", "Samples that wait", readings, _waiting)
        yield _gauge(
            "orch_drift_state", "0 none, 1 moderate, 2 major: the last window", readings, _drift
        )
        yield _gauge(
            "orch_confidence", "Mean largest probability of sampled answers", readings, _confidence
        )
        yield _gauge(
            "orch_accuracy", "Share of right answers where labels came", readings, _accuracy
        )
        yield _gauge(
            "orch_calibration_error",
            "Expected calibration error where labels came",
            readings,
            lambda one: one.calibration_error,
        )
        yield _gauge("orch_labelled", "Answers whose label came", readings, _labelled)
        psi = GaugeMetricFamily(
            "orch_drift_psi",
            "Population stability index of the last window",
            labels=[*_VERSION, "descriptor"],
        )
        for one in readings:
            for name, value in one.psi.items():
                psi.add_metric([one.name, one.version, name], value)
        yield psi
        if (log := self._log()) is not None:
            rows = CounterMetricFamily("orch_log_rows", "Rows of the request log", labels=["fate"])
            rows.add_metric(["written"], log[0])
            rows.add_metric(["lost"], log[1])
            yield rows


def _gauge(
    name: str, about: str, readings: list[Reading], value: Callable[[Reading], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, about, labels=_VERSION)
    for one in readings:
        if (found := value(one)) is not None:
            family.add_metric([one.name, one.version], found)
    return family


def _share(one: Reading) -> float:
    return one.share


def _waiting(one: Reading) -> float:
    return one.waiting


def _drift(one: Reading) -> float | None:
    return None if one.drift is None else [*map(str, STATES)].index(one.drift)


def _confidence(one: Reading) -> float | None:
    return one.confidence


def _accuracy(one: Reading) -> float | None:
    return one.accuracy


def _labelled(one: Reading) -> float:
    return one.labelled
