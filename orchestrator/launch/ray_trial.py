"""One trial inside a warm Ray Tune worker: a generator, advanced from report to report."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import tune

from orchestrator.host import Resources
from orchestrator.launch.ray_train import group_reports
from orchestrator.launch.remote import (
    Failure,
    Interruptible,
    Packed,
    WorkerLostError,
    WorkFailedError,
    bundle,
    free_memory,
    single_worker,
)


@dataclass(frozen=True)
class Report:
    """Keeps Tune from taking a report apart and from converting its values."""

    values: Mapping[str, Any]


def trainable(resources: Resources, token: str) -> type[tune.Trainable]:
    """The trainable of every trial of one sweep.

    Args:
        resources: of one trial.
        token: trials are interrupted when `ask_to_end` is called for it.
    """

    class WarmTrial(_WarmTrial):
        needs = resources
        end_token = token

        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            # The worker of a group's trial only waits; Tune wants it to hold something.
            holds = bundle(resources) if resources.workers == 1 else {"memory": 1}
            return tune.PlacementGroupFactory([holds])

    return WarmTrial


class _WarmTrial(tune.Trainable):  # type: ignore[misc]
    """Advances one trial's generator from report to report, then takes the next trial."""

    needs: Resources
    end_token: str

    def setup(self, config: dict[str, Any]) -> None:
        """Gets the process ready and takes the first trial."""
        self._interruptible = Interruptible()
        # Imported modules stay for ever: a collection that walks them takes 0.2 s a trial.
        gc.freeze()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Drops all of the last trial and takes the next."""
        self._packed: Packed = new_config["packed"]
        self._reports: Any = None
        self._closed = False
        free_memory()
        return True

    def step(self) -> dict[str, Any]:
        """Goes on to the next report.

        Raises:
            WorkFailedError: in place of what the trial raised.
            WorkerLostError: if a worker of the trial's group died.
        """
        try:
            with self._interruptible(self.end_token):
                return self._advance()
        except KeyboardInterrupt:
            self.close_trial()
            return {"done": True}
        except (WorkFailedError, WorkerLostError):
            raise  # of a group, described by the rank that it is about
        except BaseException as error:
            raise WorkFailedError(Failure.of(error)) from None

    def close_trial(self) -> None:
        """Lets the trial's own `finally` blocks run; the next step says that it is done."""
        reports, self._reports, self._closed = self._reports, None, True
        if hasattr(reports, "close"):
            reports.close()

    def cleanup(self) -> None:
        """Called before the process ends."""
        with suppress(Exception):
            self.close_trial()

    def get_auto_filled_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Tune's own columns, without a copy of the trial's parameters in every report."""
        filled: dict[str, Any] = super().get_auto_filled_metrics(*args, **kwargs)
        return {name: value for name, value in filled.items() if name != "config"}

    def _advance(self) -> dict[str, Any]:
        if self._closed:
            return {"done": True}
        if self._reports is None:
            self._reports = iter(self._start())
        try:
            return {"report": Report(dict(next(self._reports)))}
        except StopIteration:
            self._reports = None
            return {"done": True}

    def _start(self) -> Any:
        if self.needs.workers == 1:
            return self._packed.start(single_worker(self.needs.cpus))
        return group_reports(self._packed, self.needs)
