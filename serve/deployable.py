"""A file for Ray's own `serve deploy`, which starts the same application on a cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.serving import ServeConfig
from orchestrator.errors import UserError
from orchestrator.files import write_text
from orchestrator.serve.images import ImageLimits
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.server import Door
from orchestrator.serve.targets import Served

IMPORT_PATH = "orchestrator.serve.app:deployable"
_HEAD = """\
# Written by `orch serve --write-config`. On a node of a Ray cluster whose nodes all have orch
# installed and see these folders at the same paths: serve deploy {name}
# Keys stand here as their sha256. A file that was changed begins anew; with this one, a restarted
# server goes on with the versions and traffic that it had.
"""


def deployable_arguments(
    served: Sequence[Served], config: ServeConfig, door: Door, models_root: Path
) -> dict[str, Any]:
    """What `app.deployable` is called with; plain values."""
    settings = door.settings(config, models_root)
    arguments: dict[str, Any] = {
        "models": [asdict(one.spec) for one in served],
        "serve": config.model_dump(mode="json"),
        "settings": asdict(settings),
    }
    # Tuples would not survive a file.
    plain: dict[str, Any] = json.loads(json.dumps(arguments))
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
    return plain | {"state": str(models_root.resolve() / f".serving-{digest}.json")}


def write_deployable(
    path: Path, served: Sequence[Served], config: ServeConfig, door: Door, models_root: Path
) -> None:
    """Writes a file that `serve deploy` takes.

    Raises:
        UserError: if HTTPS is asked for, which a cluster's own entrance terminates.
    """
    if door.certificate is not None:
        raise UserError(
            "a deployed server has no TLS of its own; leave serve.tls and --tls-cert out, and let "
            "the cluster's load balancer terminate it"
        )
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": door.host, "port": door.port},
        "applications": [
            {
                "name": "orch",
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": deployable_arguments(served, config, door, models_root),
            }
        ],
    }
    text = yaml.safe_dump(content, sort_keys=False, width=100)
    write_text(path, _HEAD.format(name=path.name) + text)


def read_arguments(
    arguments: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], ServeConfig, GatewaySettings, Path]:
    """What `deployable_arguments` gave: versions, section, gateways' settings, state file."""
    settings = dict(arguments["settings"])
    settings["images"] = ImageLimits(**settings["images"])
    for name in ("key_digests", "admin_digests"):
        settings[name] = tuple(settings[name])
    models = [
        {**one, "sha256": tuple(tuple(pair) for pair in one["sha256"])}
        for one in arguments["models"]
    ]
    config = ServeConfig.model_validate(arguments["serve"])
    return models, config, GatewaySettings(**settings), Path(arguments["state"])
