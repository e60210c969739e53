"""More requests than there is room or time for, against a real server on a loopback port."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from orchestrator.serve.compute import local_backend
from orchestrator.serve.guards.keys import digest_key
from orchestrator.serve.routes.shared import GatewaySettings
from orchestrator.serve.traffic.batcher import QueueLimits
from tests.serve.asking import (
    INFER,
    PNG,
    PREDICT,
    Gate,
    check_refused,
    head,
    tensor,
)
from tests.serve.live import live_server


@pytest.fixture
def gate() -> Iterator[Gate]:
    one = Gate()
    yield one
    one.open.set()


def test_overload_is_refused_and_takes_no_memory(gate):
    """Of many requests at once some wait; the rest is refused at once, and may come back."""
    settings = GatewaySettings(waiting=16)
    body = np.zeros((1, 1, 12, 12), np.uint8)
    request = tensor(datatype="UINT8", data=body.ravel().tolist())
    with live_server(
        backend=local_backend([gate], QueueLimits(waiting=16, compute_seconds=120)),
        settings=settings,
    ) as live:
        limits = httpx.Limits(max_connections=100)
        with (
            httpx.Client(base_url=live.url, timeout=300, limits=limits) as client,
            concurrent.futures.ThreadPoolExecutor(64) as threads,
        ):
            calls = [threads.submit(client.post, INFER, json=request) for _ in range(64)]
            refused = wait_for(lambda: [c for c in calls if c.done()], at_least=64 - 16 - 8)
            for call in refused:
                check_refused(call.result(), 429, "samples wait")
            before = psutil.Process().memory_info().rss
            for _ in range(300):
                check_refused(client.post(INFER, json=request), 429, "try again")
            assert psutil.Process().memory_info().rss - before < 32 * 2**20
            gate.open.set()
            statuses = [call.result().status_code for call in calls]
        # What waits, and one or two batches.
        assert 16 < statuses.count(200) == sum(gate.computed) <= 16 + 2 * gate.max_batch
        assert statuses.count(429) == 64 - statuses.count(200)
        assert live.client.post(INFER, json=request).status_code == 200


def test_decoded_images_are_held_to_what_may_wait(gate):
    """A megabyte of small files can be gigabytes of pixels, so they count before they queue."""
    settings = GatewaySettings(waiting=3)
    batch = {"images": [base64.b64encode(PNG).decode()] * 2}
    with live_server(backend=local_backend([gate]), settings=settings) as live:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            first = threads.submit(live.client.post, PREDICT, json=batch)
            wait_for(lambda: range(gate.entered), at_least=1)
            check_refused(live.client.post(PREDICT, json=batch), 429, "2 samples wait")
            gate.open.set()
            assert first.result().status_code == 200
        large = {"images": batch["images"] * 4}
        assert len(live.client.post(PREDICT, json=large).json()["answers"]) == 8


def wait_for(look: Any, at_least: int) -> Any:
    end = time.monotonic() + 60
    while len(found := look()) < at_least:
        assert time.monotonic() < end, f"{len(found)} of {at_least}"
        time.sleep(0.01)
    return found


def test_nothing_is_computed_for_a_client_that_is_gone(gate):
    backend = local_backend([gate])
    request = json.dumps(tensor()).encode()
    with live_server(backend=backend) as live:

        async def look() -> int:
            # On the event loop: beside it a request is seen that goes on at once.
            return sum(backend.waiting("shoes").values())

        def waiting() -> range:
            return range(live.call(look()))

        with concurrent.futures.ThreadPoolExecutor(3) as threads:
            # Once one waits, two batches are under way, so that what comes now waits as well.
            busy = [threads.submit(live.client.post, INFER, json=tensor()) for _ in range(3)]
            wait_for(waiting, at_least=1)
            gone = [live.connect() for _ in range(5)]
            for connection in gone:
                connection.sendall(
                    f"POST {INFER} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(request)}\r\n"
                    "\r\n".encode()
                    + request
                )
            wait_for(waiting, at_least=6)
            for connection in gone:
                connection.close()
            wait_for(lambda: re.findall(r'status="499"} 5\.0', live.client.get("/metrics").text), 1)
            assert backend.waiting("shoes") == {"1": 1}
            gate.open.set()
            assert [call.result().status_code for call in busy] == [200] * 3
        assert live.client.post(INFER, json=tensor()).status_code == 200
        assert sum(gate.computed) == 4
        assert backend.waiting("shoes") == {"1": 0}


def test_bodies_are_held_to_a_room_of_their_own():
    """Connections that each hold a part of a body can't fill the memory together."""
    settings = GatewaySettings(max_body=8 * 2**20)
    gate = Gate()
    with live_server(backend=local_backend([gate]), settings=settings) as live:
        held: list[socket.socket] = []

        def hold_one() -> None:
            held.append(live.connect())
            with contextlib.suppress(ConnectionError):
                held[-1].sendall(head(8 * 2**20) + bytes(8 * 2**20 - 1))

        def asked_when_fuller() -> httpx.Response:
            # One more each time: those that come while the room is full are refused themselves.
            hold_one()
            return live.client.post(PREDICT, content=bytes(100))

        for _ in range(7):
            hold_one()
        refused = wait_for(
            lambda: [a for a in [asked_when_fuller()] if a.status_code == 503], at_least=1
        )
        check_refused(refused[0], 503, "as many requests as it can")
        for connection in held:
            connection.close()
        asked = lambda: live.client.post(PREDICT, content=bytes(100))  # noqa: E731
        wait_for(lambda: [a for a in [asked()] if a.status_code == 400], at_least=1)


def test_a_client_may_ask_so_often_and_no_more():
    keys = ["a" * 16, "b" * 16]
    settings = GatewaySettings(key_digests=tuple(map(digest_key, keys)), requests_per_second=0.01)
    with live_server(backend=local_backend([Gate()]), settings=settings) as live:
        first, second = ({"X-API-Key": key} for key in keys)
        assert live.client.get("/v2", headers=first).status_code == 200
        refused = live.client.get("/v2", headers=first)
        check_refused(refused, 429, "0.01 times a second")
        assert 90 <= int(refused.headers["retry-after"]) <= 100
        assert live.client.get("/v2", headers=second).status_code == 200
        assert live.client.get("/v2/health/live").status_code == 200
        check_refused(live.client.get("/v2"), 401, "API key")
