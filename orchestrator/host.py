"""Where work runs: a rank's view of its group (`Worker`), the driver's of its machine (`Host`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.errors import OrchError

T = TypeVar("T")


class Worker(Protocol):
    """A rank's view of the group that trains one model."""

    rank: int
    world_size: int
    device: torch.device
    group: Any
    """The process group that `sum` is over; None for all ranks."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and reports."""
        ...

    def barrier(self) -> None:
        """Waits for every rank."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, in place, on every rank."""
        ...

    def agree(self, flags: int) -> int:
        """The bitwise or of every rank's flags."""
        ...

    def broadcast(self, value: T) -> T:
        """Rank 0's value (picklable), on every rank."""
        ...

    def gather(self, value: T) -> list[T] | None:
        """Every rank's value (picklable) on rank 0, None elsewhere."""
        ...


class SingleWorker:
    """One process that trains alone."""

    rank = 0
    world_size = 1
    is_main = True
    group = None

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def barrier(self) -> None:
        """See `Worker`."""

    def sum(self, value: Tensor) -> Tensor:
        """See `Worker`."""
        return value

    def agree(self, flags: int) -> int:
        """See `Worker`."""
        return flags

    def broadcast(self, value: T) -> T:
        """See `Worker`."""
        return value

    def gather(self, value: T) -> list[T] | None:
        """See `Worker`."""
        return [value]


class GroupWorker:
    """One rank of an initialised `torch.distributed` process group."""

    group = None

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    @property
    def is_main(self) -> bool:
        """See `Worker`."""
        return self.rank == 0

    def barrier(self) -> None:
        """See `Worker`."""
        dist.barrier()

    def sum(self, value: Tensor) -> Tensor:
        """See `Worker`."""
        dist.all_reduce(value)
        return value

    def agree(self, flags: int) -> int:
        """See `Worker`."""
        # NCCL has no bitwise or, so each bit is a maximum of its own.
        bits = torch.tensor([flags >> n & 1 for n in range(8)], device=self.device)
        dist.all_reduce(bits, op=dist.ReduceOp.MAX)
        return sum(int(bit) << n for n, bit in enumerate(bits.tolist()))

    def broadcast(self, value: T) -> T:
        """See `Worker`."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: T) -> list[T] | None:
        """See `Worker`."""
        box: list[Any] | None = [None] * self.world_size if self.is_main else None
        dist.gather_object(value, box, dst=0)
        return box


@dataclass(frozen=True)
class Resources:
    """What one stage needs: `workers` processes, each with `cpus` cores and `gpus` devices."""

    workers: int = 1
    cpus: int = 1
    gpus: float = 0


Again = Callable[[OrchError, Mapping[str, Any]], Mapping[str, Any]]
"""(what a group's call failed with, its arguments) to those to start it with once more, or raises
the error."""
Call = TypeVar("Call", bound=Callable[..., Any])


def restarted_by(again: Again) -> Callable[[Call], Call]:
    """Marks a call that a failed group may be started with once more, its arguments changed.

    A process that fails alone starts over by itself. A group can't: its other ranks wait for the
    failed one in a collective, so all of them end, and whoever started them starts them anew.
    """

    def mark(call: Call) -> Call:
        call.again = again  # type: ignore[attr-defined]
        return call

    return mark


def arguments_after(
    call: Callable[..., Any], error: OrchError, arguments: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The arguments to start a group's call with once more.

    Raises:
        OrchError: what it failed with, where it would only fail again.
    """
    again: Again | None = getattr(call, "again", None)
    if again is None:
        raise error
    return again(error, arguments)


class Pending(Protocol):
    """Work that was submitted."""

    def done(self) -> bool:
        """Whether `result` would return at once."""
        ...

    def result(self) -> Any:
        """Waits, then returns what the work returned or raises what it raised."""
        ...

    def cancel(self) -> None:
        """Asks the work to end."""
        ...


class Host(Protocol):
    """Who gives work its devices. The sequence of stages knows nothing else of Ray."""

    def capacity(self, resources: Resources) -> int:
        """How many such stages fit at once.

        Raises:
            ResourceError: if not even one ever fits.
        """
        ...

    def submit(
        self, call: Callable[..., Any], arguments: Mapping[str, Any], resources: Resources
    ) -> Pending:
        """Starts ``call(worker=…, **arguments)`` on every worker; the result is rank 0's."""
        ...

    def run_trials(self, trials: TrialStream, resources: Resources, concurrency: int) -> None:
        """Runs trials until the stream has no more.

        Each trial is a generator that a (reused) worker advances; what it yields goes to
        `TrialStream.report`, whose answer may stop it.
        """
        ...

    def close(self) -> None:
        """Frees everything the host started."""
        ...


@dataclass(frozen=True)
class TrialJob:
    """One trial to run: ``call(worker=…, **arguments)`` is a generator of report mappings."""

    id: str
    call: Callable[..., Iterator[Mapping[str, Any]]]
    arguments: Mapping[str, Any]


class TrialStream(Protocol):
    """Hands out trials and judges their reports. Lives in the driver."""

    def next(self) -> TrialJob | None:
        """The next trial, or None when there is none to start now.

        Asked again after every `finished`: a trial whose worker died is handed out once more.
        """
        ...

    def report(self, id: str, report: Mapping[str, Any]) -> bool:
        """Takes one report; True asks for the trial to be stopped (pruned)."""
        ...

    def finished(self, id: str, error: str | None, crashed: bool = False) -> None:
        """Says that a trial ended by itself, was stopped as asked, or failed with `error`.

        Args:
            crashed: the worker died rather than raised, so the trial is worth another start.
        """
        ...
