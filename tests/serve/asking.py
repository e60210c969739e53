"""Requests that tests send, what a refusal of one has to be like, and a model that waits."""

from __future__ import annotations

import re
import threading
from typing import Any

import httpx
import numpy as np
from PIL import Image

from orchestrator.serve.backend import Computed, Inputs
from orchestrator.serve.cards import ModelCard
from tests.serve.serving import LABELS, encode

INFER, PREDICT = "/v2/models/shoes/infer", "/predict/shoes"
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
PNG, JPEG = (encode(Image.fromarray(NOISE), kind) for kind in ("PNG", "JPEG"))


def check_refused(answer: httpx.Response, status: int, message: str) -> None:
    """JSON with one error that says why, and nothing of this machine."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    check_says_nothing_of_us(answer.text)
    assert ("retry-after" in answer.headers) == (status in (429, 503))


def check_says_nothing_of_us(text: str) -> None:
    assert not re.search(
        r"Traceback|File \"|\.py\b|/tmp/|/home/|/work/|site-packages|0x[0-9a-f]{6}", text
    )


def tensor(**changes: Any) -> dict[str, Any]:
    values = {"name": "image", "shape": [1, 1, 12, 12], "datatype": "FP32", "data": [0.5] * 144}
    return {"inputs": [values | changes]}


def head(length: int, *more: str) -> bytes:
    lines = [f"POST {PREDICT} HTTP/1.1", "Host: here", f"Content-Length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


class Gate:
    """An executor that computes only while its gate is open."""

    kind, max_batch = "gate", 4

    def __init__(self) -> None:
        self.card = ModelCard("shoes", (1, 12, 12), LABELS)
        self.open = threading.Event()
        self.entered = 0
        self.computed: list[int] = []

    def run(self, inputs: Inputs, seconds: float | None) -> Computed:
        self.entered += 1
        assert self.open.wait(120)
        self.computed.append(len(inputs))
        return Computed(np.full((len(inputs), 3), 1 / 3, np.float32))
