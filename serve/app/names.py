"""What Serve's deployments are called, and what they have in common."""

from __future__ import annotations

from typing import Any

from ray.exceptions import (
    ActorUnavailableError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

APP = "orch"
OPERATOR = "operator"
GATEWAY = "gateway"
MODEL = "model"
"""The one deployment of each version's application."""
LOST = (
    RayActorError,
    ActorUnavailableError,
    WorkerCrashedError,
    OutOfMemoryError,
    DeploymentUnavailableError,
    BackPressureError,
)
"""What a call raises whose replica has ended, or whose deployment has none."""
# What fails is logged where it does; Ray Serve would add what was refused for good reasons, with a
# traceback, and that queues are busy.
QUIET: dict[str, Any] = {"log_level": "CRITICAL", "enable_access_log": False}
HEALTH: dict[str, Any] = {"health_check_period_s": 2, "graceful_shutdown_timeout_s": 10}
