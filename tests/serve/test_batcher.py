"""What a queue makes of the requests of one version: batches, their sizes, and when they leave."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from orchestrator.serve.backend import (
    Answer,
    Computed,
    Inputs,
    NoAnswerError,
    OverdueError,
    ReplicaLostError,
)
from orchestrator.serve.traffic.batcher import ATTEMPTS, Batcher, QueueLimits
from orchestrator.serve.traffic.pace import EvenPace
from tests.serve.replicas import Replicas, settle, until


class Clients:
    """Requests to one queue."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self.answers: list[asyncio.Task[Answer]] = []

    async def ask(self, *sizes: int, seconds: float | None = None) -> None:
        """Asks for so many samples each, one request after another, with as many seconds each."""
        for size in sizes:
            inputs = np.zeros((size, 1, 1, 1), np.uint8)
            due = None if seconds is None else time.monotonic() + seconds
            self.answers.append(asyncio.ensure_future(self._batcher.ask(inputs, due)))
            await settle()


def queued(
    story: Callable[[Replicas, Batcher, Clients], Coroutine[Any, Any, None]],
    limits: QueueLimits | None = None,
) -> None:
    """Runs a story with a queue before two replicas."""

    async def told() -> None:
        replicas = Replicas()
        batcher = Batcher(replicas, limits or QueueLimits())
        await story(replicas, batcher, Clients(batcher))

    asyncio.run(told())


# --- pace --------------------------------------------------------------------------------------


def test_what_is_outstanding_is_divided_evenly():
    pace = EvenPace(Replicas())
    assert [pace.size(n) for n in (1, 5, 6, 10, 24, 27, 1000)] == [1, 1, 2, 3, 8, 8, 8]
    pace.learn(20, 1.0)
    # What was outstanding a moment ago comes back, so a share does not shrink at once.
    assert pace.size(1) == 6
    for _ in range(20):
        pace.learn(1, 1.0)
    assert pace.size(1) == 1


def test_a_share_waits_for_half_of_a_batch_s_time_where_a_replica_is_idle():
    pace = EvenPace(Replicas())
    for _ in range(30):
        pace.learn(1, 0.4)
    assert [pace.patience(n) for n in (0, 1, 2, 3)] == [
        0.0,
        pytest.approx(0.2),
        pytest.approx(0.8),
        pytest.approx(0.8),
    ]


# --- batches -----------------------------------------------------------------------------------


def test_few_clients_wait_for_nobody():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1, 1, 1)
        assert replicas.sizes == [1, 1, 1]

    queued(story)


def test_a_load_goes_in_even_batches():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        batcher._pace.learn(0, 1000)
        await clients.ask(*[1] * 8)
        assert replicas.sizes == [1, 1, 1, 1] and batcher.waiting == 4
        for number in range(4):  # a third of the eight that were outstanding is two
            replicas.finish(number)
            await settle()
        assert replicas.sizes[4:] == [2, 2] and batcher.waiting == 0
        await clients.ask(1, 1)
        assert replicas.sizes[6:] == [1] and batcher.waiting == 1
        await clients.ask(1, 1, 1, 1)
        assert replicas.sizes[7:] == [2] and batcher.waiting == 3
        replicas.finish(4)
        await settle()
        assert replicas.sizes[8:] == [3]
        for number in range(5, 9):
            replicas.finish(number)
        found = [await one for one in clients.answers]
        assert [one.batch for one in found] == [1] * 4 + [2] * 4 + [1, 2, 2, 3, 3, 3]
        assert batcher.idle

    queued(story)


def test_the_next_batch_leaves_before_answers_are_delivered():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(*[8] * 5)
        assert replicas.sizes == [8] * 4
        there: list[int] = []
        clients.answers[0].add_done_callback(lambda _: there.append(len(replicas.sizes)))
        replicas.finish(0)
        await settle()
        assert there == [5]

    queued(story)


def test_a_request_of_many_samples_is_not_cut():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(20, 30)
        assert replicas.sizes == [20, 30]
        replicas.finish(0)
        replicas.finish(1)
        assert [(await one).batch for one in clients.answers] == [20, 30]

    queued(story)


@pytest.mark.parametrize("seconds", [0.02, 1000])
def test_an_idle_replica_is_left_idle_for_company_only(seconds):
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        for _ in range(30):
            batcher._pace.learn(6, seconds)
        await clients.ask(1, 1)
        if seconds < 1:
            await until(lambda: replicas.sizes == [1, 1])
        else:
            assert replicas.sizes == [1] and batcher.waiting == 1
            await clients.ask(1)
            assert replicas.sizes == [1, 2]

    queued(story)


def test_a_deadline_is_not_waited_away():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        batcher._pace.learn(6, 1000)
        await clients.ask(1)
        inputs = np.zeros((1, 1, 1, 1), np.uint8)
        hasty = asyncio.ensure_future(batcher.ask(inputs, time.monotonic() + 3))
        await until(lambda: len(replicas.sizes) == 2 or hasty.done())
        replicas.finish(1)
        assert (await hasty).batch == 1  # neither 504, nor with a batch that is not there

    queued(story)


def test_a_deadline_ends_a_fixed_wait_too():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1)
        await clients.ask(1, seconds=2)  # behind one that would wait for longer
        await until(lambda: len(replicas.sizes) == 2 or clients.answers[1].done())
        replicas.finish(1)
        assert (await clients.answers[1]).batch == 1

    queued(story, QueueLimits(wait_seconds=1000))


def test_one_in_a_hurry_hurries_nobody_else():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1, 1, 1, 1)  # all that may be under way
        for seconds in (None, 100, None, 150, 1000):
            await clients.ask(1, seconds=seconds)
        assert len(replicas.sizes) == 4
        for number in range(3):
            replicas.finish(number)
            await settle()
        assert replicas.sizes[4:] == [2, 2, 1]
        assert replicas.seconds[4] is None
        assert 90 < replicas.seconds[5] <= 100 and 900 < replicas.seconds[6] <= 1000
        assert batcher.waiting == 0

    queued(story, QueueLimits(wait_seconds=0.0))


def test_who_has_time_left_is_computed_again_when_another_s_time_is_up():
    """An ensemble is given as long as the first of its batch has."""

    class Late(Replicas):
        async def compute(
            self, requests: Sequence[Inputs], seconds: float | None
        ) -> list[Computed | NoAnswerError]:
            found = await super().compute(requests, seconds)
            late = NoAnswerError("the deadline came when 0 of the 2 members were done", status=504)
            return [late for _ in requests] if len(self.sizes) == 5 else found

    async def story() -> None:
        replicas = Late()
        batcher = Batcher(replicas, QueueLimits(wait_seconds=0.0))
        clients = Clients(batcher)
        await clients.ask(1, 1, 1, 1)
        await clients.ask(1, seconds=1)
        await clients.ask(1, seconds=1.7)
        replicas.finish(0)
        await until(lambda: replicas.sizes == [1, 1, 1, 1, 2])
        await asyncio.sleep(1)
        replicas.finish(4)
        with pytest.raises(OverdueError, match="0 of the 2 members"):
            await clients.answers[4]
        await until(lambda: replicas.sizes[5:] == [1])
        replicas.finish(5)
        assert (await clients.answers[5]).batch == 1

    asyncio.run(story())


def test_no_answer_keeps_nothing_of_what_was_asked():
    """Not even until the garbage collector comes: it may be long, and images are large."""

    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        async def ask(seconds: float | None) -> weakref.ref[Any]:
            inputs = np.zeros((1, 1, 1, 1), np.uint8)
            due = None if seconds is None else time.monotonic() + seconds
            with pytest.raises(NoAnswerError):
                await batcher.ask(inputs, due)
            return weakref.ref(inputs)

        failing = asyncio.ensure_future(ask(None))
        await settle()
        replicas.finish(0, NoAnswerError("the model failed"))
        refused = [await failing]
        replicas._done.clear()  # which has the error
        await clients.ask(1, 1, 1, 1)
        refused.append(await ask(0.02))
        await settle()
        assert [one() for one in refused] == [None, None]

    gc.disable()
    try:
        queued(story)
    finally:
        gc.enable()


def test_a_deadline_ends_the_wait_for_room_and_for_a_forward_pass_that_hangs():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1, 1, 1)
        await clients.ask(1, 1, seconds=0.5)  # one is computed, one waits
        for one in clients.answers[3:]:
            with pytest.raises(NoAnswerError, match="deadline passed") as caught:
                await one
            assert caught.value.status == 504
        assert len(replicas.sizes) == 4 and batcher.waiting == 0
        replicas.finish(3)  # nobody waits for it any more, which does no harm
        await settle()
        await clients.ask(1)
        assert len(replicas.sizes) == 5

    queued(story, QueueLimits(wait_seconds=0.0))


@pytest.mark.parametrize("clients_there", [3, 4, 5, 7, 8, 11, 20])
def test_replicas_that_are_counted_by_their_batches_get_as_many_as_fit(clients_there):
    """Two batches a replica are what is wanted, so a third one is what asks for another."""

    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        replicas.replicas, replicas.capacity, replicas.shares = 1, 3, 3
        batcher._pace.learn(0, 1000)
        await clients.ask(*[1] * clients_there)
        for number in range(12):  # whoever is answered asks again
            replicas.finish(number)
            await settle()
            await clients.ask(*[1] * replicas.sizes[number])
        assert len(replicas.sizes) - 12 == 3

    queued(story)


def test_a_fixed_wait_gathers_until_it_is_over_or_the_batch_is_full():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(*[1] * 7)
        assert replicas.sizes == []
        await clients.ask(1, 1)
        assert replicas.sizes == [8]

    queued(story, QueueLimits(wait_seconds=1000))

    async def patient(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1, 1)
        await until(lambda: replicas.sizes == [2])

    queued(patient, QueueLimits(wait_seconds=0.02))


def test_a_wait_may_be_shorter_than_the_event_loop_counts():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        image = np.zeros((1, 1, 1, 1), np.uint8)
        asked = [asyncio.ensure_future(batcher.ask(image)) for _ in range(3)]
        await until(lambda: sum(replicas.sizes) == 3)
        for number in range(len(replicas.sizes)):
            replicas.finish(number)
        await asyncio.gather(*asked)

    queued(story, QueueLimits(wait_seconds=0.0004))


# --- faults ------------------------------------------------------------------------------------


def test_a_lost_batch_is_computed_again_and_not_for_ever():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(2)
        for number in range(ATTEMPTS):
            await until(lambda number=number: len(replicas.sizes) > number)
            replicas.finish(number, ReplicaLostError("gone"))
        with pytest.raises(NoAnswerError, match="gone; try again") as caught:
            await clients.answers[0]
        assert caught.value.status == 503 and len(replicas.sizes) == ATTEMPTS
        await until(lambda: batcher.idle)
        assert batcher.waiting == 0

    queued(story)


def test_waiting_for_a_replica_is_no_time_of_the_models():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        async def none() -> None:
            await asyncio.sleep(0.05)
            raise ReplicaLostError("no replica")

        replicas.available = none
        await clients.ask(1)
        with pytest.raises(NoAnswerError, match="no replica; try again") as caught:
            await clients.answers[0]
        assert caught.value.status == 503 and replicas.sizes == []

    queued(story, QueueLimits(compute_seconds=0.01))


def test_what_fails_is_answered_for_each_request_and_the_queue_goes_on():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1, 8, 8, 8, 4, 4)
        replicas.finish(0, RuntimeError("secret"))
        await settle()
        with pytest.raises(NoAnswerError, match=r"failed \(RuntimeError\)"):
            await clients.answers[0]
        assert replicas.sizes == [1, 8, 8, 8, 8]
        replicas.finish(1, NoAnswerError("the model failed (IndexError)"))  # as the wire says it
        with pytest.raises(NoAnswerError, match=r"^the model failed \(IndexError\)$"):
            await clients.answers[1]

    queued(story)


def test_a_batch_that_takes_too_long_is_given_up():
    async def story(replicas: Replicas, batcher: Batcher, clients: Clients) -> None:
        await clients.ask(1)
        with pytest.raises(NoAnswerError, match=r"more than 0\.01 seconds") as caught:
            await clients.answers[0]
        assert caught.value.status == 504

    queued(story, QueueLimits(compute_seconds=0.01))
