"""Networks that answer together: in turn or side by side, in time, and no more than needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.executors.base import ComputedRows
from orchestrator.serve.executors.forwards import Forward, OnnxForward
from orchestrator.serve.executors.front import Front
from orchestrator.serve.executors.stacked import StackedForward
from orchestrator.serve.executors.tally import Tally, combine
from orchestrator.serve.images import to_unit
from orchestrator.serve.predictor import CHUNK


@dataclass(frozen=True)
class Patience:
    """When an ensemble answers without all of its members.

    Attributes:
        quorum: members that have to be done.
        early_exit: a sample asks no further members once those asked, `quorum` at least, give it
            the same label and together this probability (Inoue, "Adaptive ensemble prediction for
            deep neural networks based on confidence level", 2019); None asks all.
    """

    quorum: int = 1
    early_exit: float | None = None


class MembersExecutor:
    """Members as networks of their own; see `Executor`.

    Args:
        front: from inputs to what each member reads.
        forwards: one a member.
        kind: see `Executor.kind`.
        max_batch: see `Executor.max_batch`; what is longer than it and than `CHUNK` is computed
            in parts, so that a large request needs no more memory.
        patience: see `Patience`.
        threads: members that compute at the same time.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        front: Front,
        forwards: Sequence[Forward],
        kind: str,
        max_batch: int,
        patience: Patience = Patience(),
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.card, self.kind, self.max_batch = front.card, kind, max_batch
        self._front, self._forwards, self._clock = front, list(forwards), clock
        self._quorum = min(patience.quorum, len(self._forwards))
        self._early_exit = patience.early_exit if len(self._forwards) > 1 else None
        # Those that weigh most come first: they are who answers if time runs out.
        self._order = sorted(range(len(self._forwards)), key=lambda m: -front.weights[m])
        self._threads = threads
        self._pool = _single_threaded(threads) if threads > 1 else None

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        """See `Executor.run`."""
        due = None if seconds is None else self._clock() + seconds
        parts = []
        with torch.inference_mode():
            for part in _parts(inputs, self.max_batch):
                xs = self._front(part)
                parts.append(self._all(xs, due) if self._early_exit is None else self._few(xs, due))
        if len(parts) == 1 and self._early_exit is None:  # almost always
            (one,) = parts
            return Computed(one.rows.numpy(), int(one.members[0]), one.late)
        members = np.concatenate([part.members for part in parts])
        late = any(part.late for part in parts)
        rows = np.concatenate([part.rows.numpy() for part in parts])
        return ComputedRows(rows, int(members.min()), late, members)

    def _all(self, xs: Sequence[Tensor], due: float | None) -> _Part:
        """Every member, or those for which there is time."""
        if len(self._forwards) == 1:
            return _Part(self._forwards[0](xs[0]).softmax(1), np.ones(len(xs[0]), np.int64), False)
        done = self._ask(self._order, dict(enumerate(xs)), due, asked=0)
        weights = [self._front.weights[member] for member in done]
        rows_BK = combine(torch.stack([*done.values()]), weights, self.card.combine)
        members_B = np.full(len(rows_BK), len(done))
        return _Part(rows_BK, members_B, late=len(done) < len(self._order))

    def _few(self, xs: Sequence[Tensor], due: float | None) -> _Part:
        """As many members as each sample needs."""
        assert self._early_exit is not None
        size, asked, late = len(xs[0]), 0, False
        tally = Tally(size, len(self.card.label_names), self.card.combine)
        samples = torch.arange(size)
        for group in _groups(self._order, self._quorum, self._threads):
            done = self._ask(group, {m: xs[m][samples] for m in group}, due, asked)
            for member, logits_SK in done.items():
                tally.add(logits_SK, self._front.weights[member], samples)
            asked += len(done)
            late = len(done) < len(group)
            samples = tally.undecided(self._early_exit)
            if late or not len(samples):
                break
        return _Part(tally.probabilities(), tally.members_B.numpy(), late and len(samples) > 0)

    def _ask(
        self, members: Sequence[int], xs: Mapping[int, Tensor], due: float | None, asked: int
    ) -> dict[int, Tensor]:
        """Logits of members; without those that would be late, where enough are done.

        Args:
            xs: what each member reads.
            due: when time is up.
            asked: members that have answered before these.
        """
        if self._pool is not None and len(members) > 1:
            return self._side_by_side(self._pool, members, xs, due, asked)
        done: dict[int, Tensor] = {}
        longest = 0.0
        for member in members:
            start = self._clock()
            if due is not None:
                count = asked + len(done)
                if count >= self._quorum and start + longest > due:
                    break
                if count < self._quorum and start > due:
                    raise _too_late(count, self._quorum)
            done[member] = self._forwards[member](xs[member])
            longest = max(longest, self._clock() - start)
        return done

    def _side_by_side(
        self,
        pool: ThreadPoolExecutor,
        members: Sequence[int],
        xs: Mapping[int, Tensor],
        due: float | None,
        asked: int,
    ) -> dict[int, Tensor]:
        futures = [pool.submit(_inferred, self._forwards[m], xs[m]) for m in members]
        if due is not None:
            wait(futures, max(0.0, due - self._clock()))
            for future in futures:
                future.cancel()  # those that were not begun
            count = asked + sum(one.done() and not one.cancelled() for one in futures)
            if count < min(self._quorum, asked + len(members)):
                raise _too_late(count, self._quorum)
        chosen = [
            (member, future)
            for member, future in zip(members, futures, strict=True)
            if due is None or (future.done() and not future.cancelled())
        ]
        return {member: future.result() for member, future in chosen}


@dataclass(frozen=True)
class _Part:
    """The answer to some samples: float32[B, classes], int64[B], and whether time ran out."""

    rows: Tensor
    members: npt.NDArray[np.int64]
    late: bool


class WholeExecutor:
    """One network as one ONNX file, scaling and softmax in it; see `Executor`.

    Args:
        card: what it answers for.
        forward: pixels float32[B, C, H, W] in 0..1 to probabilities.
        kind, max_batch: see `Executor`.
    """

    def __init__(self, card: ModelCard, forward: OnnxForward, kind: str, max_batch: int) -> None:
        self.card, self.kind, self.max_batch = card, kind, max_batch
        self._forward = forward

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        """See `Executor.run`."""
        rows = [
            self._forward.of_array(to_unit(part))  # type: ignore[arg-type]
            for part in _parts(inputs, self.max_batch)
        ]
        return Computed(rows[0] if len(rows) == 1 else np.concatenate(rows))


class StackedExecutor:
    """All members as one network; where its time is short, as networks of their own.

    Args:
        front: from inputs to what each member reads.
        forward: all members.
        alone: the same members, for requests that can't wait for all.
        kind, max_batch: see `Executor`.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        front: Front,
        forward: StackedForward,
        alone: MembersExecutor,
        kind: str,
        max_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.card, self.kind, self.max_batch = front.card, kind, max_batch
        self._front, self._forward, self._alone = front, forward, alone
        self._clock = clock
        self._seconds: dict[int, float] = {}

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        """See `Executor.run`."""
        if seconds is not None and self._expected(len(inputs)) > seconds:
            return self._alone.run(inputs, seconds)
        parts = [self._answer(part) for part in _parts(inputs, self.max_batch)]
        return Computed(torch.cat(parts).numpy(), self.card.members)

    def _answer(self, inputs: Inputs) -> Tensor:
        start = self._clock()
        with torch.inference_mode():
            logits_MBK = self._forward(self._front(inputs))
            rows_BK = combine(logits_MBK, self._front.weights, self.card.combine)
        self._remember(len(inputs), self._clock() - start)
        return rows_BK

    def _remember(self, samples: int, seconds: float) -> None:
        size = _power_of_two(samples)
        self._seconds[size] = 0.5 * (self._seconds.get(size, seconds) + seconds)

    def _expected(self, samples: int) -> float:
        """Seconds that so many samples took lately; the nearest larger size's, in parts."""
        most = max(CHUNK, self.max_batch)
        parts, rest = divmod(samples, most)
        sizes = [most] * parts + ([rest] if rest else [])
        return sum(self._of(_power_of_two(size)) for size in sizes)

    def _of(self, size: int) -> float:
        known = [one for one in sorted(self._seconds) if one >= size]
        return self._seconds[known[0]] if known else max(self._seconds.values(), default=0.0)


def _parts(inputs: Inputs, max_batch: int) -> Iterator[Inputs]:
    size = max(CHUNK, max_batch)
    return (inputs[start : start + size] for start in range(0, len(inputs), size))


def _power_of_two(samples: int) -> int:
    return 1 << max(0, samples - 1).bit_length()


def _groups(members: Sequence[int], first: int, width: int) -> list[Sequence[int]]:
    """A group of `first` members, then groups of `width`."""
    rest = range(first, len(members), width)
    return [members[:first], *(members[start : start + width] for start in rest)]


def _too_late(done: int, quorum: int) -> NoAnswerError:
    return NoAnswerError(
        f"the deadline came when {done} of the {quorum} members that it takes were done",
        status=504,
    )


def _inferred(forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode():  # of a thread, not of a process
        return forward(x)


def _single_threaded(workers: int) -> ThreadPoolExecutor:
    """Threads in which torch computes with one thread each."""
    here, together = torch.get_num_threads(), threading.Barrier(workers + 1)
    pool = ThreadPoolExecutor(workers, "member", initializer=torch.set_num_threads, initargs=(1,))
    for _ in range(workers):
        pool.submit(together.wait)
    together.wait()
    torch.set_num_threads(here)  # the call sets the number of later threads too
    return pool
