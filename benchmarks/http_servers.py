"""The servers that ours is measured against: `python -m benchmarks.http_servers KIND PORT RUN…`.

Each answers `GET /noop` and `POST /infer` (uint8 pixels as the body, probabilities as JSON), with
the run's network in fp32 as it was loaded, one thread for each process that computes.
"""

# Without postponed annotations: what serves these classes looks at the types of parameters.

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI, Request

from orchestrator.serve.predictor import Predictor, load_predictor

MAX_BATCH, WAIT_SECONDS = 32, 0.002
COMPUTING = 2
"""Processes that compute; one more speaks HTTP, or computes too where that is one."""


def fastapi_app(folders: list[str]) -> FastAPI:
    """A plain endpoint that runs one forward a request."""
    app, predictor = FastAPI(), load_predictor(Path(folders[0]))

    @app.get("/noop")
    async def noop() -> dict[str, bool]:
        return {"live": True}

    @app.post("/infer")
    async def infer(request: Request) -> list[float]:
        answer: list[float] = predictor.predict(pixels_of(await request.body(), predictor))[
            0
        ].tolist()
        return answer

    return app


def pixels_of(body: bytes, predictor: Predictor) -> torch.Tensor:
    """The image of a request, [1, C, H, W] in 0..1."""
    pixels = np.frombuffer(body, np.uint8).reshape(1, *predictor.card.shape)
    return torch.from_numpy(pixels.astype(np.float32) / 255)


def run_fastapi(port: int, folders: list[str], workers: int) -> None:
    """Uvicorn with as many processes as the others have for HTTP and computing together."""
    import uvicorn

    uvicorn.run(
        "benchmarks.http_servers:app",
        port=port,
        workers=workers,
        log_level="error",
        access_log=False,
    )


def run_serve(port: int, folders: list[str]) -> None:
    """Ray Serve as it comes: its own proxy, `@serve.batch`, members one after another."""
    import ray
    from ray import serve

    app = FastAPI()

    @serve.deployment(max_ongoing_requests=1024, num_replicas=COMPUTING)
    @serve.ingress(app)
    class Stock:
        def __init__(self, folders: list[str]) -> None:
            torch.set_num_threads(1)
            self.predictors = [load_predictor(Path(one)) for one in folders]

        @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_SECONDS)
        async def together(self, images: list[torch.Tensor]) -> list[list[float]]:
            pixels = torch.cat(images)
            answers = torch.stack([one.predict(pixels) for one in self.predictors])
            return list(answers.mean(0).tolist())

        @app.get("/noop")
        async def noop(self) -> dict[str, bool]:
            return {"live": True}

        @app.post("/infer")
        async def infer(self, request: Request) -> list[float]:
            answer: list[float] = await self.together(
                pixels_of(await request.body(), self.predictors[0])
            )
            return answer

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    serve.run(Stock.bind(folders), route_prefix="/", logging_config=quiet)
    while True:
        time.sleep(1)


def main() -> None:
    kind, port, *folders = sys.argv[1:]
    torch.set_num_threads(1)
    if kind == "fastapi":
        run_fastapi(int(port), folders, COMPUTING + 1)
    elif kind == "litserve":
        from benchmarks.litserve_server import run_litserve

        run_litserve(int(port), folders)
    else:
        run_serve(int(port), folders)


def __getattr__(name: str) -> Any:
    # Uvicorn's workers import this module anew, and ask it for `app`.
    if name == "app":
        torch.set_num_threads(1)
        return fastapi_app(sys.argv[3:])
    raise AttributeError(name)


if __name__ == "__main__":
    main()
