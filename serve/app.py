"""The Ray Serve application: a gateway that speaks HTTP, and replicas of each model behind it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from orchestrator.config.pipeline import ServeConfig
from orchestrator.errors import WorkError
from orchestrator.serve.backend import NoAnswerError, Pixels, Probabilities
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.gateway import GatewaySettings, create_app

APP = "orch"
_BATCHES_WAITING = 8
"""Batches' worth of requests that a replica accepts, so that the next batch is full in time."""
_LOST = (RayActorError, DeploymentUnavailableError, BackPressureError)


class ModelReplica:
    """One model in one process: gathers requests that wait and answers them together."""

    def __init__(self, root: str, name: str, config: ServeConfig) -> None:
        # Imported here: the gateway shares this file, and computes nothing.
        import torch

        from orchestrator.serve.compute import answer_together
        from orchestrator.serve.predictor import load_predictor

        torch.set_num_threads(max(1, int(config.cpus)))
        device = "cuda" if config.gpus and torch.cuda.is_available() else "cpu"
        predictor = load_predictor(Path(root), name, device)
        self._compute = partial(answer_together, predictor)
        # Torch computes beside the event loop, which goes on receiving the next batch.
        self._thread = ThreadPoolExecutor(1)
        self._answer.set_max_batch_size(config.max_batch)
        self._answer.set_batch_wait_timeout_s(config.batch_wait_ms / 1000)
        # The first pass allocates and chooses kernels; no client waits for it.
        self._compute([np.zeros((1, *predictor.card.shape), np.float32)])

    @serve.batch  # type: ignore[untyped-decorator]
    async def _answer(self, requests: list[Pixels]) -> list[Probabilities | NoAnswerError]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._compute, requests)

    async def predict(self, pixels: Pixels) -> Probabilities | NoAnswerError:
        """Answers one request; see `Backend.predict`."""
        answer: Probabilities | NoAnswerError = await self._answer(pixels)
        return answer

    async def ready(self) -> bool:
        """Whether the model is loaded; a replica that answers at all has loaded it."""
        return True


class RayBackend:
    """Sends requests to the replicas of each model."""

    def __init__(
        self, cards: Mapping[str, ModelCard], handles: Mapping[str, DeploymentHandle]
    ) -> None:
        self.cards, self._handles = dict(cards), dict(handles)

    async def predict(self, name: str, pixels: Pixels) -> Probabilities:
        """Asks a replica of the model; see `Backend.predict`."""
        try:
            answer: Probabilities | NoAnswerError = await self._handles[name].predict.remote(pixels)
        except _LOST as error:
            raise NoAnswerError(
                f"model {name!r} lost the replica that computed this or has no free one; try again",
                status=503,
            ) from error
        if isinstance(answer, NoAnswerError):
            raise answer
        return answer

    async def ready(self, name: str) -> bool:
        """Whether a replica of the model answers within two seconds."""
        try:
            return bool(await asyncio.wait_for(self._handles[name].ready.remote(), 2))
        except (*_LOST, TimeoutError):
            return False


class GatewayReplica:
    """Speaks HTTP with clients; decodes, checks, and asks the models' replicas."""

    def __init__(
        self,
        cards: Sequence[ModelCard],
        settings: GatewaySettings,
        *handles: DeploymentHandle,
    ) -> None:
        by_name = {card.name: card for card in cards}
        backend = RayBackend(by_name, dict(zip(by_name, handles, strict=True)))
        self._app = create_app(backend, settings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str
    port: int


def build_application(
    cards: Mapping[Path, ModelCard], config: ServeConfig, settings: GatewaySettings
) -> serve.Application:
    """The gateway bound to one deployment a model.

    Args:
        cards: each model's folder and card.
        config: replicas of each model, and what each of them gets.
    """
    model = serve.deployment(
        ModelReplica,
        num_replicas=config.replicas,
        max_ongoing_requests=_BATCHES_WAITING * config.max_batch,
        ray_actor_options={"num_cpus": config.cpus, "num_gpus": config.gpus},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    )
    bound = [
        model.options(name=f"model-{card.name}").bind(str(root), card.name, config)
        for root, card in cards.items()
    ]
    gateway = serve.deployment(
        serve.ingress()(GatewayReplica),
        name="gateway",
        max_ongoing_requests=1024,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
    )
    return gateway.bind(list(cards.values()), settings, *bound)


def start(
    application: serve.Application, cpus: float, gpus: float, address: Address, temporary: Path
) -> None:
    """Starts a Ray of its own on this machine, and the application on it.

    Args:
        cpus, gpus: of all replicas together.
        temporary: a new folder for Ray's sockets and logs; its path must be short.

    Raises:
        WorkError: if a replica does not start.
    """
    ray.init(
        address="local",
        # Logical cores: more replicas than cores wait for each other, but they do start.
        num_cpus=math.ceil(cpus) + 1,
        num_gpus=math.ceil(gpus),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(temporary),
    )
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": address.host, "port": address.port},
        logging_config=quiet,
    )
    try:
        serve.run(application, name=APP, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise WorkError(f"the server did not start: {error}; its logs are in {temporary}") from None


def stop() -> None:
    """Ends the application, its proxy and Ray."""
    if not ray.is_initialized():
        return
    # The controller ends while it is asked to, and Ray prints that as an error of its own.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()
