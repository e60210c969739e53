"""The application from start to end."""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import WorkError
from orchestrator.serve.app.address import Address
from orchestrator.serve.app.gateway import DoorReplica, GatewayReplica
from orchestrator.serve.app.names import APP, GATEWAY, HEALTH, OPERATOR, QUIET
from orchestrator.serve.app.operator import OperatorReplica
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.table import Table, VersionSpec
from orchestrator.serve.routes.shared import GatewaySettings

_LOOK_SECONDS = 1.0


def build_application(
    specs: Sequence[VersionSpec],
    config: ServeConfig,
    settings: GatewaySettings,
    state: Path,
    address: Address | None = None,
) -> serve.Application:
    """Gateway and operator.

    Args:
        specs: versions that are served from the start.
        config: replicas of each version, and what each of them gets.
        state: a file for what is served, so that a restarted operator goes on.
        address: where the gateway itself listens; None leaves that to Serve's proxies.
    """
    operator = _deployment(OperatorReplica, OPERATOR, 1024)
    rules = {name: rule.model_dump(mode="json") for name, rule in config.traffic.items()}
    asked = operator.bind(config, list(specs), rules, str(state))
    if address is None:
        behind = _deployment(serve.ingress()(GatewayReplica), GATEWAY, 4096)
        return behind.bind(settings, config, asked)
    gateway = _deployment(DoorReplica, GATEWAY, 4096).options(num_replicas=1 + config.standby)
    return gateway.bind(settings, config, asked, address)


def _deployment(kind: type, name: str, ongoing: int) -> serve.Deployment:
    """A deployment that waits more than it computes."""
    options = {"num_cpus": 0}
    return serve.deployment(
        kind, name=name, max_ongoing_requests=ongoing, ray_actor_options=options, **HEALTH
    )


def deployable(arguments: dict[str, Any]) -> serve.Application:
    """What the file of `orch serve --write-config` names; see `deployable_arguments`."""
    # Imported here: it brings torch, which gateways have no use for.
    from orchestrator.serve.deployable import read_arguments

    models, config, settings, state = read_arguments(arguments)
    return build_application([VersionSpec(**one) for one in models], config, settings, state)


def start(application: serve.Application, cpus: float, gpus: float, temporary: Path) -> None:
    """Starts a Ray of its own on this machine, and the application on it.

    Args:
        application: with a door of its own.
        cpus, gpus: of all replicas together.
        temporary: a new folder for Ray's sockets and logs; its path must be short.

    Raises:
        WorkError: if a replica does not start.
    """
    ray.init(
        address="local",
        # Logical cores: more replicas than cores wait for each other, but they do start. There
        # is room for as many again, so that versions can be loaded beside those that answer.
        num_cpus=2 * math.ceil(cpus) + 8,
        num_gpus=math.ceil(gpus),
        include_dashboard=False,
        log_to_driver=True,
        logging_level=logging.ERROR,
        _temp_dir=str(temporary),
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(proxy_location="Disabled", logging_config=QUIET)
    try:
        serve.run(application, name=APP, route_prefix=None, logging_config=QUIET)
        _operator().begun.remote().result()
    except (RuntimeError, LoadError) as error:
        raise WorkError(f"the server did not start: {error}; its logs are in {temporary}") from None


@cache
def _operator() -> DeploymentHandle:
    return serve.get_deployment_handle(OPERATOR, APP)


def look() -> Table | None:
    """What is served now; None while the operator restarts."""
    try:
        asked = _operator().look.remote()
        table: Table = asked.result(timeout_s=_LOOK_SECONDS)
    except Exception:
        return None
    return table


def stop() -> None:
    """Ends the application and Ray."""
    if not ray.is_initialized():
        return
    # The controller ends while it is asked to, and Ray prints that as an error of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()
