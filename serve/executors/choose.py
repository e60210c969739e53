"""Which way a model runs: the fastest that gives the same numbers, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import UserError
from orchestrator.serve.backend import Inputs, Probabilities
from orchestrator.serve.executors.base import Executor, free_memory
from orchestrator.serve.executors.decision import Decision
from orchestrator.serve.executors.measure import (
    LARGEST_BATCH,
    best_batch,
    duel,
    largest_difference,
    throughput,
    times_faster,
    warm_up,
)
from orchestrator.serve.executors.ways import Built, Way, Workshop

FP32_TOLERANCE = 1e-5
"""What folding and another order of sums may change of a probability."""
MARGIN = 1.05
"""How many times faster than the best so far a way has to be."""
_FEWEST, _CHECK_SECONDS = 16, 1.0
_PATIENCE_SECONDS = 20
"""After which no further way is tried: someone waits for the server to start."""
_UNTIL = 64
"""Samples of a part while ways are compared."""


@dataclass
class Choice:
    """Compares the ways of one model, and keeps what it saw.

    Args:
        workshop: builds the ways.
        answers: what samples should give, float32[B, classes].
        origin: where the workshop's samples are from, in words.
    """

    workshop: Workshop
    answers: Callable[[Inputs], Probabilities]
    origin: str
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def samples(self) -> Inputs:
        """As many as the reference answers in a few seconds."""
        every = self.workshop.samples
        start = time.perf_counter()
        self.answers(every[:_FEWEST])
        took = (time.perf_counter() - start) / _FEWEST
        return every[: max(_FEWEST, min(len(every), int(_CHECK_SECONDS / took)))]

    @cached_property
    def _reference(self) -> Probabilities:
        return self.answers(self.samples)

    @property
    def _config(self) -> ServeConfig:
        return self.workshop.config

    def fastest(self) -> tuple[Executor, Decision]:
        """The fastest way within the tolerance, ready for requests.

        Raises:
            UserError: if nothing of what the configuration asks for gives the same numbers.
        """
        best: Built | None = None
        chosen: Way | None = None
        end = time.monotonic() + _PATIENCE_SECONDS
        for way in self.workshop.ways():
            if best is not None and time.monotonic() > end:
                self._seen(way)["failed"] = f"not tried: {_PATIENCE_SECONDS} seconds were over"
                continue
            challenger = self.built(way, _UNTIL)
            if challenger is None:
                continue
            if best is None or self._beats(challenger, best):
                best, chosen = challenger, way
            del challenger
            free_memory()
        if best is None or chosen is None:
            raise UserError(self._nothing())
        best.max_batch = self._max_batch(best)
        warm_up(best, self.samples, powers_of_two(best.max_batch))
        decision = Decision(chosen, best.kind, best.max_batch, self.measured, self.origin)
        return best, decision

    def built(self, way: Way, max_batch: int) -> Built | None:
        """A way's executor if it can be built and gives the same numbers."""
        seen = self._seen(way)
        try:
            executor = self.workshop.build(way, max_batch)
            if way == Way("torch"):  # the reference itself
                return executor
            difference = largest_difference(executor, self.samples, self._reference)
        except Exception as error:  # engines raise whatever they stumble over
            last = (str(error).strip().splitlines() or [""])[-1]
            seen["failed"] = f"{type(error).__name__}: {last}"[:200]
            return None
        seen["largest difference"] = difference
        allowed = FP32_TOLERANCE if way.precision == "fp32" else self._config.tolerance
        if difference > allowed:
            seen["refused"] = f"above {allowed:g}"
            return None
        return executor

    def _seen(self, way: Way) -> dict[str, Any]:
        return self.measured.setdefault(way.words(len(self.workshop.front.networks)), {})

    def _beats(self, challenger: Executor, best: Executor) -> bool:
        ours, theirs = duel(challenger, best, self.samples)
        for executor, seconds in ((challenger, ours), (best, theirs)):
            self.measured[executor.kind].setdefault("seconds", seconds)
        times = times_faster(ours, theirs)
        self.measured[challenger.kind]["times faster"] = {"than": best.kind, "by": round(times, 3)}
        return times >= MARGIN

    def _max_batch(self, executor: Built) -> int:
        if self._config.max_batch != "auto":
            return self._config.max_batch
        executor.max_batch = LARGEST_BATCH
        seconds = throughput(executor, self.samples)
        self.measured[executor.kind]["seconds by batch"] = seconds
        return best_batch(seconds)

    def _nothing(self) -> str:
        config, networks = self._config, self.workshop.front.networks
        asked = f"executor: {config.executor}, precision: {config.precision}"
        reasons = "; ".join(_reasons(self.measured)) or (
            "it needs members of one architecture, and no early_exit"
            if config.executor == "stacked" and len(networks) > 1
            else "there is no such way to run this model here"
        )
        return (
            f"serve: {{{asked}}} can't be had for {self.workshop.front.card.name}: {reasons}; "
            "raise serve.tolerance (for bf16 and int8), or set executor and precision to auto"
        )


def _reasons(measured: dict[str, dict[str, Any]]) -> Iterable[str]:
    for words, seen in measured.items():
        if "refused" in seen:
            difference = seen["largest difference"]
            yield f"{words}: probabilities differ by {difference:.2g}, {seen['refused']}"
        elif "failed" in seen:
            yield f"{words}: {seen['failed']}"


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 … and `most` itself."""
    return sorted({min(1 << n, most) for n in range(most.bit_length() + 1)})
