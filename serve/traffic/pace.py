"""How much a batch gathers before it leaves, and for how long.

Clients that wait for an answer before they ask again come back one by one. If the first of them
went to an idle replica at once, that replica would compute one sample at a time while all the
others wait for a single large batch, and most of the time would go into what a batch costs by
itself. So what is under way is divided evenly: a share for each replica, and one that gathers.
"""

from __future__ import annotations

from orchestrator.serve.traffic.pool import Pool

_DECAY = 0.8
"""Of what was outstanding before, with each batch: a load that falls is noticed within a few."""
_SMOOTH = 0.3
_PATIENCE = 0.5
"""Of the time that batches take, there and back: so long a share that is not full waits although
a replica is idle."""
_BUSY = 2.0
"""The same while all are busy: one of them should have become idle by then."""


class EvenPace:
    """Shares of what is outstanding (`batch_wait_ms: auto`).

    Args:
        pool: the replicas.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._level = self._seconds = 0.0

    def size(self, outstanding: int) -> int:
        """Samples that a batch should have.

        Args:
            outstanding: samples that wait or are computed.
        """
        even = int(max(outstanding, self._level) / self._pool.shares)
        return max(1, min(self._pool.max_batch, even))

    def patience(self, batches: int) -> float:
        """Seconds that a smaller batch waits; long where every replica has something to do.

        Args:
            batches: that are under way.
        """
        if not batches:
            return 0.0
        return (_PATIENCE if batches < self._pool.replicas else _BUSY) * self._seconds

    def learn(self, outstanding: int, seconds: float) -> None:
        """Takes in that a batch was computed.

        Args:
            outstanding: as `size` takes it, that batch included.
            seconds: that it took, to the replica and back; of a longer one than `max_batch`, the
                part that so many samples take.
        """
        self._level = max(outstanding, _DECAY * self._level)
        self._seconds += _SMOOTH * (seconds - self._seconds) if self._seconds else seconds


class FixedPace:
    """As many samples as are worth it, or as come within a fixed time.

    Args:
        pool: the replicas.
        seconds: how long a batch that is not full waits although there is room for it.
    """

    def __init__(self, pool: Pool, seconds: float) -> None:
        self._pool, self._seconds = pool, seconds

    def size(self, outstanding: int) -> int:
        """See `EvenPace.size`."""
        return self._pool.max_batch

    def patience(self, batches: int) -> float:
        """See `EvenPace.patience`."""
        return self._seconds

    def learn(self, outstanding: int, seconds: float) -> None:
        """Nothing: the time is fixed."""
