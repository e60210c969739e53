"""What a version is judged by: the requests that its traffic rule gave it, and what it did."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from orchestrator.config.serving import Latest
from orchestrator.serve.backend import Ask, NoAnswerError, Seen
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.rule import Outcome
from orchestrator.serve.traffic.rules import LatestRule
from tests.serve.replicas import CARD, Replicas, settle

ONE = np.zeros((1, 1, 1, 1), np.uint8)


def judged(
    story: Callable[[Replicas, Dispatcher], Coroutine[Any, Any, None]], waiting: int = 1024
) -> tuple[list[Outcome], list[Seen]]:
    """What judges and watchers were told during a story."""
    outcomes: list[Outcome] = []
    seen: list[Seen] = []

    async def told() -> None:
        replicas = Replicas()
        limits = QueueLimits(waiting=waiting, wait_seconds=0.0)
        dispatcher = Dispatcher(limits, lambda name, outcome: outcomes.append(outcome))
        dispatcher.watch(seen.append)
        dispatcher.install({CARD.name: (LatestRule(Latest()), {CARD.version: replicas})})
        await story(replicas, dispatcher)

    asyncio.run(told())
    return outcomes, seen


@pytest.mark.parametrize(("version", "counted"), [("", 1), (CARD.version, 0)])
def test_a_version_that_was_asked_for_by_name_is_not_judged_by_that(version, counted):
    async def story(replicas: Replicas, dispatcher: Dispatcher) -> None:
        answer = asyncio.ensure_future(dispatcher.predict("pets", ONE, Ask(version=version)))
        await settle()
        replicas.finish(0, RuntimeError("broken"))
        with pytest.raises(NoAnswerError):
            await answer

    outcomes, seen = judged(story)
    assert [one.failed for one in outcomes] == [True] * counted
    assert [one.failed for one in seen] == [True]


def test_a_deadline_of_its_own_is_not_the_models_fault():
    async def story(replicas: Replicas, dispatcher: Dispatcher) -> None:
        with pytest.raises(NoAnswerError, match="deadline"):
            await dispatcher.predict("pets", ONE, Ask(deadline=time.monotonic() + 0.05))

    outcomes, seen = judged(story)
    assert outcomes == [Outcome(CARD.version, False, math.inf)], "longer than any answer"
    assert [(one.failed, one.answer) for one in seen] == [(False, None)]


def test_a_queue_that_is_full_says_nothing_of_the_model():
    async def story(replicas: Replicas, dispatcher: Dispatcher) -> None:
        asked = [asyncio.ensure_future(dispatcher.predict("pets", ONE, Ask())) for _ in range(5)]
        await settle()  # four are computed, one waits
        with pytest.raises(NoAnswerError) as caught:
            await dispatcher.predict("pets", ONE, Ask())
        assert caught.value.status == 429
        for one in asked:
            one.cancel()
        await settle()

    outcomes, seen = judged(story, waiting=1)
    assert len(outcomes) == 5 and len(seen) == 6
    assert not any(one.failed for one in seen)
