"""The queue before a version's replicas.

Requests wait here, in the gateway, and cross to a replica as one batch, so that what a message and
a forward pass cost by themselves is paid once for all of them. A batch leaves as
soon as a replica has room, so that nobody waits for company while something is idle, and grows by
itself while all are busy.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass

from orchestrator.serve.backend import Answer, Inputs, NoAnswerError, ReplicaLostError
from orchestrator.serve.traffic.pool import Pool

ATTEMPTS = 3
"""How often a request is computed when replicas end under it: a forward pass has no side effect."""
_PAUSE = 0.2
"""Seconds before the next attempt."""


@dataclass(frozen=True)
class QueueLimits:
    """What a queue obeys.

    Attributes:
        waiting: samples that wait at most.
        wait_seconds: how long a batch that is not full waits for more although there is room.
        compute_seconds: how long one batch may take.
    """

    waiting: int = 1024
    wait_seconds: float = 0.0
    compute_seconds: float = 30.0


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


class Batcher:
    """Gathers the requests of one version and computes them together. One event loop's.

    Args:
        pool: the replicas.
        limits: see `QueueLimits`.
    """

    def __init__(self, pool: Pool, limits: QueueLimits) -> None:
        self.pool, self._limits = pool, limits
        self._queue: deque[_Waiting] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
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
            NoAnswerError: if too many wait (429), time ran out (504), replicas ended under every
                attempt (503), or the model failed (500).
        """
        if self.waiting + len(inputs) > self._limits.waiting and self._queue:
            raise NoAnswerError(
                f"{self.waiting} samples wait for {self.pool.card.name!r} already; try again",
                status=429,
            )
        now = time.monotonic()
        one = _Waiting(inputs, due, asyncio.get_running_loop().create_future(), now)
        self._queue.append(one)
        self.waiting += one.size
        self._pump()
        try:
            return await one.answer
        except asyncio.CancelledError:
            self._forget(one)
            raise

    def _forget(self, one: _Waiting) -> None:
        """Frees the place of a request whose client has left, unless it is computed already."""
        with contextlib.suppress(ValueError):
            self._queue.remove(one)
            self.waiting -= one.size

    def _pump(self) -> None:
        """Sends batches while there is room for them."""
        while self._queue and len(self._under_way) < self.pool.capacity:
            if not self._full() and (wait := self._time_to_fill()) > 0:
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._fire)
                return
            if batch := self._take():
                task = asyncio.ensure_future(self._compute(batch))
                self._under_way.add(task)
                task.add_done_callback(self._done)

    def _fire(self) -> None:
        self._timer = None
        self._pump()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._pump()

    def _full(self) -> bool:
        return self.waiting >= self.pool.max_batch

    def _time_to_fill(self) -> float:
        return self._queue[0].arrived + self._limits.wait_seconds - time.monotonic()

    def _take(self) -> list[_Waiting]:
        """The next batch; requests whose client has left, or whose time is up, are not in it."""
        batch: list[_Waiting] = []
        size, now = 0, time.monotonic()
        while self._queue and (not batch or size + self._queue[0].size <= self.pool.max_batch):
            one = self._queue.popleft()
            self.waiting -= one.size
            if one.answer.done():
                continue
            if one.due is not None and one.due <= now:
                one.answer.set_exception(_too_late())
                continue
            batch.append(one)
            size += one.size
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        start = time.monotonic()
        dues = [one.due for one in batch if one.due is not None]
        seconds = min(dues) - start if dues else None
        try:
            async with asyncio.timeout(self._limits.compute_seconds):
                answers = await self.pool.compute([one.inputs for one in batch], seconds)
        except ReplicaLostError as error:
            await self._again(batch, error)
            return
        except TimeoutError:
            seconds = self._limits.compute_seconds
            _fail(batch, NoAnswerError(f"the model took more than {seconds:g} seconds", status=504))
            return
        except Exception as error:
            _fail(batch, NoAnswerError(f"the model failed ({type(error).__name__})"))
            return
        taken = time.monotonic() - start
        size = sum(one.size for one in batch)
        for one, answer in zip(batch, answers, strict=True):
            if one.answer.done():
                continue
            if isinstance(answer, NoAnswerError):
                one.answer.set_exception(answer)
                continue
            version = self.pool.card.version
            one.answer.set_result(Answer(answer, version, start - one.arrived, taken, size))

    async def _again(self, batch: list[_Waiting], error: ReplicaLostError) -> None:
        """Puts a lost batch back at the head of the queue, as often as `ATTEMPTS` says."""
        await asyncio.sleep(_PAUSE)
        for one in reversed(batch):
            one.attempts += 1
            if one.attempts < ATTEMPTS:
                self._queue.appendleft(one)
                self.waiting += one.size
            else:
                _fail([one], NoAnswerError(f"{error}; try again", status=503))


def _fail(batch: list[_Waiting], error: NoAnswerError) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)


def _too_late() -> NoAnswerError:
    return NoAnswerError("the deadline passed while the request waited", status=504)
