"""A process that computes batches of one version."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import OrchError
from orchestrator.run_folder.registry import check_files
from orchestrator.run_folder.statistics import Statistics
from orchestrator.serve.backend import Computed, Heat, Inputs, NoAnswerError, Pixels
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import Started, VersionSpec

_LOG = logging.getLogger(__name__)


class ModelReplica:
    """One version in one process: computes the batches that gateways send.

    Args:
        spec: the version.
        config: executor, precision, cores.

    Raises:
        LoadError: if the model can't be loaded, or is not the one that was registered.
    """

    def __init__(self, spec: VersionSpec, config: ServeConfig) -> None:
        # Imported here: gateways and the operator know this class, and compute nothing.
        import torch

        from orchestrator.serve.executors.load import load_executor
        from orchestrator.serve.monitor.reference import Reference

        torch.set_num_threads(max(1, int(config.cpus)))
        device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        try:
            check_files(Path(spec.root), spec.sha256, spec.key)
            self._executor = load_executor(Path(spec.root), spec.name, spec.version, config, device)
        except OrchError as error:
            raise LoadError(str(error)) from None
        self._reference = Reference(Path(spec.root), device)
        # Torch computes beside the event loop, which goes on receiving the next batch.
        self._thread = ThreadPoolExecutor(1)
        self._limit = config.limits.compute_seconds
        self._since: float | None = None

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        """Answers one batch; see `Pool.compute`."""
        from orchestrator.serve.compute import due_in

        loop, due = asyncio.get_running_loop(), due_in(seconds)
        return await loop.run_in_executor(self._thread, self._timed, requests, due)

    def _timed(
        self, requests: Sequence[Inputs], due: float | None
    ) -> list[Computed | NoAnswerError]:
        from orchestrator.serve.compute import answer_together

        self._since = time.monotonic()
        try:
            return answer_together(self._executor, requests, due)
        finally:
            self._since = None

    async def explain(self, pixels: Pixels, label: int) -> Heat:
        """See `Pool.explain`."""
        return await self._reference.explain(pixels, label)

    async def statistics(self) -> Statistics | None:
        """See `Pool.statistics`."""
        return await self._reference.statistics()

    async def started(self) -> Started:
        """What this replica answers for; one that answers at all has loaded it."""
        one = self._executor
        return Started(one.card, one.max_batch, one.kind)

    async def check_health(self) -> None:
        """Ends this process if a forward pass hangs, so that Serve replaces it at once.

        A check that only fails would be asked three times, and the replica then be waited for.
        """
        since = self._since
        if since is not None and time.monotonic() - since > self._limit:
            _LOG.error("a forward pass took more than %g seconds", self._limit)
            os._exit(1)
