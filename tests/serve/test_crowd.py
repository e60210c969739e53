"""Many clients who ask again as soon as they are answered, as load tests and batch jobs do."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import torch

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.control.table import VersionSpec
from orchestrator.serve.predictor import load_predictor
from tests.serve.live import Live, live_server
from tests.serve.serving import SHAPE, make_run

CLIENTS, EACH = 32, 60


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    """Status and body of the answer to one request on an open connection."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.split(b"content-length:")[1].split(b"\r\n")[0]
    return int(head.split()[1]), await reader.readexactly(int(length))


async def crowd(live: Live, bodies: list[bytes]) -> list[list[tuple[int, bytes]]]:
    """What each client was answered, who sends the same body again and again."""

    async def client(body: bytes) -> list[tuple[int, bytes]]:
        reader, writer = await asyncio.open_connection(live.host, live.port)
        head = f"POST /v2/models/shoes/infer HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}"
        request = head.encode() + b"\r\nContent-Type: application/json\r\n\r\n" + body
        answers = [await exchange(reader, writer, request) for _ in range(EACH)]
        writer.close()
        return answers

    return await asyncio.gather(*map(client, bodies))


def test_every_request_of_a_crowd_gets_its_own_answer(tmp_path):
    root = make_run(tmp_path / "shoes")
    pixels = np.random.default_rng(0).random((CLIENTS, *SHAPE), dtype=np.float32)
    expected = load_predictor(root).predict(torch.from_numpy(pixels)).numpy()
    bodies = []
    for image in pixels:
        tensor = {"name": "image", "shape": [1, *SHAPE], "datatype": "FP32"}
        asked = {
            "inputs": [{**tensor, "data": image.ravel().tolist()}],
            "outputs": [{"name": "probabilities"}],
        }
        bodies.append(json.dumps(asked).encode())
    with live_server(
        [VersionSpec("shoes", "1", str(root))], config=ServeConfig(executor="torch")
    ) as live:
        answers = asyncio.run(crowd(live, bodies))
    for wanted, answered in zip(expected, answers, strict=True):
        assert [status for status, _ in answered] == [200] * EACH
        rows = [json.loads(body)["outputs"][0]["data"] for _, body in answered]
        assert np.allclose(rows, wanted, atol=1e-5, rtol=0)
