"""What is known of one version while it answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from orchestrator.run_folder.statistics import BINS, Calibration, Statistics, bin_of
from orchestrator.serve.backend import Seen
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.monitor.drift import LEVEL, MAJOR, MODERATE, Shift
from orchestrator.serve.monitor.recent import Recent
from orchestrator.serve.monitor.windows import WINDOW, Budget, Describer, Window, sample

_NAN = float("nan")


class Labelled:
    """How right a version was on those requests whose label came later."""

    def __init__(self) -> None:
        zeros = np.zeros(BINS, np.int64)
        self._found = Calibration(zeros.copy(), np.zeros(BINS), zeros.copy())

    @property
    def found(self) -> Calibration:
        """By bins of confidence."""
        return self._found

    def add(self, confidence: float, correct: bool) -> None:
        """Takes one label in."""
        place = int(bin_of(np.array([confidence]))[0])
        self._found.count[place] += 1
        self._found.confidence[place] += confidence
        self._found.correct[place] += correct


class VersionWatch:
    """One version of one model, as this gateway sees it. The event loop's.

    Args:
        card: of the version; another card means another version of the same name.
        describer: compares samples beside the event loop.
    """

    def __init__(self, card: ModelCard, describer: Describer) -> None:
        self.card, self._describer = card, describer
        self.recent, self.labelled = Recent(), Labelled()
        self.reference: Statistics | None = None
        self.window: Window | None = None
        self.learnt = False
        """Whether it is known that there is a reference, or none."""
        self.confidence = 0.0
        """Sum of the largest probabilities of answers since the start; `answers` of them."""
        self.answers = 0
        self._budget = Budget()

    def learn(self, reference: Statistics | None) -> None:
        """Takes the reference that inputs are compared with; None if there is none."""
        self.learnt, self.reference = True, reference
        if reference is not None and len(reference.predicted) == len(self.card.label_names):
            self.window = Window(reference)

    def see(self, seen: Seen, now: float) -> tuple[float, ...]:
        """Notes a request.

        Args:
            now: on `time.monotonic`'s clock.

        Returns:
            Seconds of each of `STAGES`; NaN where one does not apply. Empty without an answer.
        """
        if seen.answer is None:
            if seen.failed:
                self.recent.fail()
            return ()
        answer, trace = seen.answer, seen.trace
        receive = decode = _NAN
        if trace is not None and trace.received is not None:
            receive = trace.received - trace.arrived
            decode = max(0.0, seen.asked - trace.received)
        total = now - (seen.asked if trace is None else trace.arrived)
        stages = (receive, decode, answer.queue_seconds, answer.compute_seconds, total)
        self.recent.add(stages, answer.batch)
        self._compare(seen)
        return stages

    def _compare(self, seen: Seen) -> None:
        assert seen.answer is not None
        count = self._budget.take(len(seen.inputs))
        if not count:
            return
        one = sample(seen.inputs, seen.answer.computed.probabilities, count)
        self.confidence += float(one.probabilities.max(1).sum())
        self.answers += count
        if self.window is not None and self.reference is not None:
            self._describer.put(self.window, self.reference, one)

    # --- for people ---------------------------------------------------------------------------

    def drift(self) -> dict[str, Any]:
        """The last whole window's verdict, and how far the next one is."""
        if self.window is None:
            state = "no reference" if self.learnt else "unknown"
            return {"state": state, "shifts": [], "window": WINDOW, "collected": 0}
        verdict = self.window.verdict
        found: dict[str, Any] = {
            "state": "collecting" if verdict is None else verdict.state,
            "window": WINDOW,
            "collected": self.window.samples,
            "windows": self.window.windows,
            "alarms": self.window.alarms,
            "level": LEVEL,
            "thresholds": {"moderate": MODERATE, "major": MAJOR},
            "at": None if verdict is None else verdict.at,
            "samples": 0 if verdict is None else verdict.samples,
            "shifts": [] if verdict is None else [_shift(one) for one in verdict.shifts],
        }
        if self.reference is not None:
            found["reference"] = {
                "split": self.reference.split,
                "samples": self.reference.samples,
                "data": self.reference.data_digest[:12],
            }
        return found

    def calibration(self) -> dict[str, Any]:
        """How confident answers are, and how right they were where a label is known."""
        past = None if self.reference is None else self.reference.calibration
        return {
            "confidence": self.confidence / self.answers if self.answers else None,
            "held_out": None if past is None else _calibration(past),
            "live": _calibration(self.labelled.found),
        }


def _shift(one: Shift) -> dict[str, Any]:
    return {**dataclasses.asdict(one), "state": one.state}


def _calibration(found: Calibration) -> dict[str, Any]:
    total = int(found.count.sum())
    return {
        "answers": total,
        "confidence": float(found.confidence.sum()) / total if total else None,
        "accuracy": found.accuracy,
        "error": found.error,
        "bins": [
            {"count": int(n), "confidence": float(c) / n, "accuracy": int(right) / n}
            if n
            else {"count": 0, "confidence": None, "accuracy": None}
            for n, c, right in zip(
                found.count.tolist(),
                found.confidence.tolist(),
                found.correct.tolist(),
                strict=True,
            )
        ],
    }
