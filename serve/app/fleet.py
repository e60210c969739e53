"""Versions as Serve applications."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any

from ray import serve

from orchestrator.config.serving import Replicas, ServeConfig
from orchestrator.serve.app.names import HEALTH, MODEL, QUIET
from orchestrator.serve.app.replica import RayReplica
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.scaling import by_batches
from orchestrator.serve.control.table import Started, VersionSpec

_START_SECONDS = 300.0
"""How long a version may take until its replicas are ready."""


class RayFleet:
    """Versions as Serve applications; see `Fleet`."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config

    async def start(self, spec: VersionSpec) -> Started:
        """See `Fleet.start`."""
        await asyncio.to_thread(self._run, spec)
        started: Started = await serve.get_app_handle(spec.key).started.remote()
        return started

    def _run(self, spec: VersionSpec) -> None:
        status = serve.status().applications.get(spec.key)
        if status is None or status.status != "RUNNING":  # by the operator before this one
            application = version_application(spec, self._config)
            target = serve.RunTarget(application, spec.key, None, QUIET)
            serve.run_many([target], wait_for_applications_running=False)
        end = time.monotonic() + _START_SECONDS
        # One that is unhealthy for a moment, as after a fault, is waited for.
        while (status := serve.status().applications.get(spec.key)) is None or (
            status.status not in ("RUNNING", "DEPLOY_FAILED")
        ):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        if status is not None and status.status == "RUNNING":
            return
        why = _why(status, f"not ready after {_START_SECONDS:g} seconds; are there CPUs for it?")
        serve.delete(spec.key)
        raise LoadError(f"{spec.key} did not start: {why}")

    async def stop(self, spec: VersionSpec) -> None:
        """See `Fleet.stop`."""
        await asyncio.to_thread(serve.delete, spec.key)

    async def keep_only(self, specs: Sequence[VersionSpec]) -> None:
        """See `Fleet.keep_only`."""
        kept = {spec.key for spec in specs}
        found = await asyncio.to_thread(serve.status)
        for name, one in found.applications.items():
            if "@" in name and [*one.deployments] == [MODEL] and name not in kept:
                await asyncio.to_thread(serve.delete, name)


def _why(status: Any, otherwise: str) -> str:
    """The last line of what a replica died of."""
    messages = [one.message for one in status.deployments.values()] if status else []
    text = next((message for message in messages if message), otherwise)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line]
    return re.sub(r"^[\w.]+Error: ", "", (named or lines)[-1])


def version_application(spec: VersionSpec, config: ServeConfig) -> serve.Application:
    """The replicas of one version."""
    scale: dict[str, Any] = {"num_replicas": config.replicas}
    if isinstance(config.replicas, Replicas):
        scale = {
            "autoscaling_config": {
                "min_replicas": config.replicas.min,
                "max_replicas": config.replicas.max,
                "target_ongoing_requests": config.replicas.batches,
                "upscale_delay_s": config.replicas.up_seconds,
                "downscale_delay_s": config.replicas.down_seconds,
                "metrics_interval_s": 1.0,
                "look_back_period_s": 5.0,
                # Batches go past Serve, which therefore has to be told of them.
                "policy": {"policy_function": f"{by_batches.__module__}:{by_batches.__name__}"},
            }
        }
    deployment = serve.deployment(
        RayReplica,
        name=MODEL,
        max_ongoing_requests=64,
        # A version that can't be loaded is told of soon; one that has been ready is always retried.
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        **HEALTH,
        **scale,
    )
    return deployment.bind(spec, config)
