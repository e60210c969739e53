"""Everything that one gateway knows of its requests: metrics, drift, calibration, the log."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version as version_of
from typing import Any

from prometheus_client import CollectorRegistry

from orchestrator.config.serving import RequestLog
from orchestrator.serve.backend import Backend, NoAnswerError, Seen
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.table import ModelEntry, Table
from orchestrator.serve.monitor.answers import LabelledAnswer, RecentAnswers
from orchestrator.serve.monitor.log import RequestLogger
from orchestrator.serve.monitor.series import Reading, ReadSeries, Role, VersionSeries
from orchestrator.serve.monitor.values import event, moment
from orchestrator.serve.monitor.versions import VersionWatch
from orchestrator.serve.monitor.windows import Describer

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 10.0
_EVENTS = 20


class Monitor:
    """Watches a backend. The event loop's, but for threads of its own that take work off it.

    Args:
        backend: whose requests are watched.
        registry: of the Prometheus series.
        log: `serve.log`; None keeps nothing.
        table: the newest table, for roles and executors; None where nothing can be changed.
    """

    def __init__(
        self,
        backend: Backend,
        registry: CollectorRegistry,
        log: RequestLog | None = None,
        table: Callable[[], Table] | None = None,
    ) -> None:
        self._backend, self._table = backend, table or Table
        self._describer = Describer()
        self._log = None if log is None else RequestLogger(log)
        self._versions: dict[tuple[str, str], VersionWatch] = {}
        self._answers = RecentAnswers()
        self._learning: set[asyncio.Task[None]] = set()
        self._asked_at: dict[tuple[str, str], float] = {}
        self._series = VersionSeries(registry)
        self._started, self._failed = time.time(), False
        self.statuses: Counter[tuple[str, int]] = Counter()
        """HTTP answers by model ("" for none) and status; `RequestMetrics` counts them."""
        registry.register(ReadSeries(self.readings, self._log_rows))
        backend.watch(self.see)

    def close(self) -> None:
        """Ends the threads; what the log has is written."""
        self._describer.close()
        if self._log is not None:
            self._log.close()

    # --- what happens -------------------------------------------------------------------------

    def see(self, seen: Seen) -> None:
        """Notes one request to a version; see `Backend.watch`. Never fails: answers go first."""
        try:
            self._see(seen)
        except Exception:
            if not self._failed:
                _LOG.exception("a request could not be watched; further ones are not reported")
            self._failed = True

    def _see(self, seen: Seen) -> None:
        card = self._backend.cards.get(seen.name, {}).get(seen.version)
        if card is None:
            return
        one = self._watch(seen.name, card)
        stages = one.see(seen, time.monotonic())
        role = "shadow" if seen.shadow else self._role(seen.name, seen.version)
        if seen.answer is None:
            if seen.failed:
                self._series.failed(seen.name, seen.version, role)
            return
        self._series.answered(seen.name, seen.version, role, stages, seen.answer.batch)
        if seen.shadow:
            return
        self._answers.add(seen)
        if self._log is not None:
            self._log.put(seen, card)

    def _watch(self, name: str, card: ModelCard) -> VersionWatch:
        key = name, card.version
        one = self._versions.get(key)
        if one is None or one.card is not card:
            one = self._versions[key] = VersionWatch(card, self._describer)
            self._asked_at.pop(key, None)
        if not one.learnt:
            self._learn(key, one)
        return one

    def _learn(self, key: tuple[str, str], one: VersionWatch) -> None:
        """Asks for the version's statistics, now and then until there is an answer."""
        now = time.monotonic()
        if now - self._asked_at.get(key, -_RETRY_SECONDS) < _RETRY_SECONDS:
            return
        self._asked_at[key] = now

        async def asked() -> None:
            try:
                one.learn(await self._backend.statistics(*key))
            except NoAnswerError:
                return
            except Exception:
                _LOG.exception("the statistics of %s@%s can't be read", *key)

        task = asyncio.ensure_future(asked())
        self._learning.add(task)
        task.add_done_callback(self._learning.discard)

    def labelled(
        self, name: str, request: str, labels: Sequence[str]
    ) -> list[LabelledAnswer] | None:
        """Takes in the labels of an answer that was given before.

        Args:
            name: of the model.
            request: the id in the answer's `X-Request-Id` header.
            labels: one for each input of the request, by name.

        Returns:
            Whether each answer was right; None if the request is not remembered (any more), has
            another number of inputs, or a label is not one of the model's.
        """
        had = self._answers.get(name, request)
        one = None if had is None else self._versions.get((name, had.version))
        if had is None or one is None or len(labels) != len(had.predicted):
            return None
        names = one.card.label_names
        if any(label not in names for label in labels):
            return None
        self._answers.forget(name, request)
        found = []
        rows = zip(labels, had.predicted, had.confidence, strict=True)
        for label, predicted, confidence in rows:
            correct = names[predicted] == label
            one.labelled.add(confidence, correct)
            found.append(LabelledAnswer(had.version, correct))
        return found

    # --- what is read -------------------------------------------------------------------------

    def _entry(self, name: str) -> ModelEntry:
        return self._table().models.get(name, ModelEntry())

    def _role(self, name: str, version: str) -> Role:
        rule = self._entry(name).rule
        if version in rule.get("shadows", ()):
            return "shadow"
        return "canary" if rule.get("canary") == version else "answers"

    def _served(self) -> list[tuple[str, VersionWatch]]:
        """Every version that is served now; what is known of others is dropped."""
        cards = self._backend.cards
        for name, version in list(self._versions):
            if version not in cards.get(name, {}):
                del self._versions[name, version]
                self._series.forget(name, version)
        return [
            (name, self._watch(name, card))
            for name, versions in cards.items()
            for card in versions.values()
        ]

    def readings(self) -> list[Reading]:
        """What Prometheus reads of each version."""
        return [self._reading(name, one) for name, one in self._served()]

    def _reading(self, name: str, one: VersionWatch) -> Reading:
        version = one.card.version
        verdict = None if one.window is None else one.window.verdict
        labelled = one.labelled.found
        return Reading(
            name,
            version,
            self._role(name, version),
            self._executor(name, version),
            self._backend.shares(name).get(version, 0.0),
            self._backend.waiting(name).get(version, 0),
            None if verdict is None else verdict.state,
            {} if verdict is None else {shift.name: shift.psi for shift in verdict.shifts},
            one.confidence / one.answers if one.answers else None,
            labelled.accuracy,
            labelled.error,
            int(labelled.count.sum()),
        )

    def _executor(self, name: str, version: str) -> str:
        entry = self._entry(name).versions.get(version)
        return "" if entry is None else entry.started.executor

    def _log_rows(self) -> tuple[int, int] | None:
        return None if self._log is None else (self._log.written, self._log.dropped)

    def status(self) -> dict[str, Any]:
        """Everything that the page shows; JSON values, of this gateway alone."""
        models: dict[str, dict[str, Any]] = {}
        for name, one in self._served():
            card = one.card
            model = models.setdefault(
                name,
                {
                    "name": name,
                    "reads": card.reads,
                    "shape": list(card.shape),
                    "classes": len(card.label_names),
                    "rule": self._entry(name).rule.get("type", "latest"),
                    "http": self._http(name),
                    "versions": [],
                },
            )
            model["versions"].append(self._version(name, one))
        return {
            "server": {
                "name": "orch",
                "version": version_of("orch"),
                "process": os.getpid(),
                "started": moment(self._started),
                "seconds": time.time() - self._started,
                "refused": self._http(""),
            },
            "models": list(models.values()),
            "events": [event(one) for one in self._table().events[-_EVENTS:]][::-1],
            "log": self._log_status(),
        }

    def _version(self, name: str, one: VersionWatch) -> dict[str, Any]:
        reading = self._reading(name, one)
        return {
            "version": reading.version,
            "role": reading.role,
            "share": reading.share,
            "waiting": reading.waiting,
            "executor": reading.executor,
            "members": one.card.members,
            "combine": one.card.combine,
            "answered": one.recent.answered,
            "failed": one.recent.failed,
            "rate": one.recent.rate(),
            "chart": one.recent.chart(),
            **one.recent.summary(),
            "drift": one.drift(),
            "calibration": one.calibration(),
        }

    def _http(self, name: str) -> Mapping[str, int]:
        """Answers over HTTP by the first digit of their status."""
        found = Counter[str]()
        for (model, status), count in self.statuses.items():
            if model == name:
                found[f"{status // 100}xx"] += count
        return dict(sorted(found.items()))

    def _log_status(self) -> dict[str, int] | None:
        rows = self._log_rows()
        return None if rows is None else {"written": rows[0], "lost": rows[1]}
