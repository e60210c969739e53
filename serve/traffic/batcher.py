"""The queue before a version's replicas.

Requests wait here, in the gateway, and cross to a replica as one batch, so that what a message and
a forward pass cost by themselves is paid once for all of them. How many a batch gathers, and for
how long, is `pace`'s to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.backend import (
    Answer,
    Computed,
    Inputs,
    NoAnswerError,
    OverdueError,
    ReplicaLostError,
)
from orchestrator.serve.errors import without_frames
from orchestrator.serve.traffic.pace import EvenPace, FixedPace
from orchestrator.serve.traffic.pool import Pool

_LOG = logging.getLogger(__name__)
ATTEMPTS = 3
"""How often a request is computed when replicas end under it: a forward pass has no side effect."""
_PAUSE = 0.2
"""Seconds before the next attempt."""
_TICK = 0.002
"""Seconds by which event loops are early: uvloop counts whole milliseconds."""
_ALIKE = 2.0
"""Deadlines in one batch differ at most so many times: who is in a hurry hurries all of it."""


@dataclass(frozen=True)
class QueueLimits:
    """What a queue obeys.

    Attributes:
        waiting: samples that wait at most.
        wait_seconds: how long a batch that is not full waits although there is room; None for what
            pays (see `EvenPace`).
        compute_seconds: how long one batch may take.
    """

    waiting: int = 1024
    wait_seconds: float | None = None
    compute_seconds: float = 30.0

    @classmethod
    def of(cls, config: ServeConfig) -> QueueLimits:
        """What `serve:` says."""
        wait = config.batch_wait_ms
        seconds = None if wait == "auto" else wait / 1000
        return cls(config.limits.waiting, seconds, config.limits.compute_seconds)


@dataclass(eq=False)
class _Waiting:
    inputs: Inputs
    due: float | None
    answer: asyncio.Future[Answer]
    arrived: float
    attempts: int = 0

    @property
    def size(self) -> int:
        return len(self.inputs)

    def goes_with(self, other: _Waiting, now: float) -> bool:
        """Whether the time that one has is enough for the other, and not far too much."""
        if self.due is None or other.due is None:
            return self.due is other.due
        left = sorted((self.due - now, other.due - now))
        return left[1] <= _ALIKE * left[0]


class Batcher:
    """Gathers the requests of one version and computes them together. One event loop's.

    Args:
        pool: the replicas.
        limits: see `QueueLimits`.
    """

    def __init__(self, pool: Pool, limits: QueueLimits) -> None:
        self.pool, self._limits = pool, limits
        wait = limits.wait_seconds
        self._pace = EvenPace(pool) if wait is None else FixedPace(pool, wait)
        self._computing = 0
        self._queue: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: tuple[float, asyncio.Handle] | None = None
        self.waiting = 0
        """Samples in the queue."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is computed."""
        return not self._queue and not self._under_way

    async def ask(self, inputs: Inputs, due: float | None = None) -> Answer:
        """The answer to one request.

        Args:
            inputs: as the version's card says.
            due: when it must be there, on `time.monotonic`'s clock.

        Raises:
            OverdueError: if it was not there when it was due.
            NoAnswerError: if too many wait (429), the model took too long (504), replicas ended
                under every attempt (503), or the model failed (500).
        """
        if self.waiting + len(inputs) > self._limits.waiting and self._queue:
            raise NoAnswerError(
                f"{self.waiting} samples wait for {self.pool.card.name!r} already; try again",
                status=429,
            )
        now, loop = time.monotonic(), asyncio.get_running_loop()
        one = _Waiting(inputs, due, loop.create_future(), now)
        alarm = None if due is None else loop.call_later(due - now, self._is_due, one)
        self._queue.append(one)
        self.waiting += one.size
        self._pump()
        try:
            return await one.answer
        except asyncio.CancelledError:
            self._forget(one)
            raise
        finally:
            if alarm is not None:
                alarm.cancel()
            # It holds an error that holds this frame, and with it all that was sent.
            del one

    def _forget(self, one: _Waiting) -> bool:
        """Frees the place of a request, unless it is computed already; whether it waited."""
        with contextlib.suppress(ValueError):
            self._queue.remove(one)
            self.waiting -= one.size
            return True
        return False

    def _is_due(self, one: _Waiting) -> None:
        """Ends a request that still waits; one that is computed has as long again.

        An ensemble's last member may have begun just before, and answers have a way to go.
        """
        assert one.due is not None
        if self._forget(one):
            _give_up(one)
            return
        asyncio.get_running_loop().call_later(one.due - one.arrived, _give_up, one)

    def _pump(self) -> None:
        """Sends batches while there is room for them."""
        while self._queue and len(self._under_way) < self.pool.capacity:
            size = self._pace.size(self.waiting + self._computing)
            if self.waiting < size and (wait := self._time_to_fill()) > 0:
                self._fire_in(wait)
                return
            if batch := self._take(size):
                self._computing += sum(one.size for one in batch)
                task = asyncio.ensure_future(self._compute(batch))
                self._under_way.add(task)
                task.add_done_callback(self._done)

    def _fire_in(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        if self._timer is not None:
            # uvloop's handles of the near future do not know their time, so it is kept here.
            planned, handle = self._timer
            if planned <= end:
                return
            handle.cancel()
        self._timer = end, asyncio.get_running_loop().call_later(seconds, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._pump()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._pump()

    def _time_to_fill(self) -> float:
        end = self._queue[0].arrived + self._pace.patience(len(self._under_way))
        halves = ((one.arrived + one.due) / 2 for one in self._queue if one.due is not None)
        return min([end, *halves]) - time.monotonic()

    def _take(self, most: int) -> list[_Waiting]:
        """The next batch, of requests that have about the same time.

        Those whose client has left, or whose time is up, are not in it.
        """
        batch: list[_Waiting] = []
        others: list[_Waiting] = []
        size, now = 0, time.monotonic()
        while self._queue and (not batch or size + self._queue[0].size <= most):
            one = self._queue.popleft()
            self.waiting -= one.size
            if one.answer.done():
                continue
            if one.due is not None and one.due <= now:
                _give_up(one)
            elif batch and not one.goes_with(batch[0], now):
                others.append(one)
            else:
                batch.append(one)
                size += one.size
        self._queue.extendleft(reversed(others))
        self.waiting += sum(one.size for one in others)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        size = sum(one.size for one in batch)
        try:
            await self.pool.available()
            start = time.monotonic()
            answers = await self._answers(batch)
        except ReplicaLostError as error:
            await self._again(batch, error)
            return
        finally:
            self._computing -= size
        taken = time.monotonic() - start
        if not all(isinstance(one, NoAnswerError) for one in answers):
            part = min(1.0, self.pool.max_batch / size)
            self._pace.learn(self.waiting + self._computing + size, part * taken)
        # The next batch leaves before these answers are written, which takes longer.
        self._under_way.discard(asyncio.current_task())
        self._pump()
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, NoAnswerError):
                self._refuse(one, answer)
                continue
            card = self.pool.card
            waited = start - one.arrived
            found = Answer(answer, card.version, waited, taken, size, card.members)
            one.answer.set_result(found)

    def _refuse(self, one: _Waiting, error: NoAnswerError) -> None:
        """Tells why there is no answer, unless it was for lack of another request's time.

        A batch is given as long as the first of its requests has, so others may have time left.
        """
        early = one.due is not None and one.due - time.monotonic() > _TICK
        if isinstance(error, OverdueError) and early:
            one.attempts += 1
            if one.attempts < ATTEMPTS:
                self._queue.appendleft(one)
                self.waiting += one.size
                return
        one.answer.set_exception(error)

    async def _answers(self, batch: list[_Waiting]) -> Sequence[Computed | NoAnswerError]:
        """What the replicas say, or why they say nothing; a `ReplicaLostError` passes."""
        dues = [one.due for one in batch if one.due is not None]
        inputs = [one.inputs for one in batch]
        try:
            async with asyncio.timeout(self._limits.compute_seconds):
                left = min(dues) - time.monotonic() if dues else None
                return [_overdue(one) for one in await self.pool.compute(inputs, left)]
        except ReplicaLostError:
            raise
        except NoAnswerError as told:
            error = without_frames(told)
        except TimeoutError:
            seconds = self._limits.compute_seconds
            error = NoAnswerError(f"the model took more than {seconds:g} seconds", status=504)
        except Exception as failed:
            _LOG.error("a batch for %s failed", self.pool.card.name, exc_info=failed)
            error = NoAnswerError(f"the model failed ({type(failed).__name__})")
        return [error] * len(batch)

    async def _again(self, batch: list[_Waiting], error: ReplicaLostError) -> None:
        """Puts a lost batch back at the head of the queue, as often as `ATTEMPTS` says."""
        await asyncio.sleep(_PAUSE)
        for one in reversed(batch):
            one.attempts += 1
            if one.attempts < ATTEMPTS:
                self._queue.appendleft(one)
                self.waiting += one.size
            elif not one.answer.done():
                one.answer.set_exception(NoAnswerError(f"{error}; try again", status=503))


def _give_up(one: _Waiting) -> None:
    if not one.answer.done():
        one.answer.set_exception(OverdueError("the deadline passed before there was an answer"))


def _overdue(answer: Computed | NoAnswerError) -> Computed | NoAnswerError:
    """A replica's answer, or why there is none; its 504 means the time that it was given."""
    if isinstance(answer, NoAnswerError) and answer.status == 504:
        return OverdueError(answer.message)
    return answer
