"""Batches over real sockets: what arrives is what was sent, and replicas come and go."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.serve.backend import Computed, Inputs, NoAnswerError, ReplicaLostError
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.control.table import Started
from orchestrator.serve.wire import listener as listener_module
from orchestrator.serve.wire.connection import Connection
from orchestrator.serve.wire.frames import (
    Frame,
    FrameError,
    read_answers,
    read_batch,
    read_frame,
    write_answers,
    write_batch,
    write_frame,
)
from orchestrator.serve.wire.listener import Listener
from orchestrator.serve.wire.place import Place
from orchestrator.serve.wire.pool import WirePool

LIMIT = 2**20
STARTED = Started(ModelCard("pets", (1, 1, 1), ("cat", "dog")), 8)


def framed(data: bytes, most: int = LIMIT) -> Frame:
    async def read() -> Frame:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_frame(reader, most)

    return asyncio.run(read())


async def computed(pool: WirePool, requests: Any, seconds: float | None) -> Any:
    """One batch, as a queue has it computed."""
    await pool.available()
    return await pool.compute(requests, seconds)


class Echo:
    """Answers each request with the sum of each of its samples; waits until it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.may.set()
        self.batches = 0

    async def compute(
        self, requests: Sequence[Inputs], seconds: float | None
    ) -> list[Computed | NoAnswerError]:
        self.batches += 1
        await self.may.wait()
        if seconds == 13:
            raise RuntimeError("broken")
        return [self._one(one) for one in requests]

    def _one(self, inputs: Inputs) -> Computed | NoAnswerError:
        if not isinstance(inputs, np.ndarray):
            lengths = [[float(len(text))] for text in inputs]
            return Computed(np.array(lengths, np.float32), 2, True)
        if inputs.sum() == 666:
            return NoAnswerError("bad", 500)
        return Computed(inputs.reshape(len(inputs), -1).sum(1, keepdims=True, dtype=np.float32))


# --- bytes -------------------------------------------------------------------------------------

shapes = st.tuples(*[st.integers(1, 3)] * 4)


@given(st.lists(st.tuples(shapes, st.sampled_from(["u1", "<f4"])), min_size=1, max_size=5))
def test_a_batch_of_images_arrives_as_it_was(kinds):
    rng = np.random.default_rng(0)
    sent = [rng.integers(0, 256, shape).astype(kind) for shape, kind in kinds]
    number, requests, seconds = read_batch(framed(write_batch(7, sent, 0.5)))
    assert (number, seconds) == (7, 0.5)
    for one, other in zip(sent, requests, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_views_arrive_as_the_numbers_they_show():
    image = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)[:, ::-1, :, ::2]
    _, (found,), _ = read_batch(framed(write_batch(1, [image], None)))
    np.testing.assert_array_equal(found, image)


@given(st.lists(st.lists(st.text(), min_size=1), min_size=1))
def test_texts_arrive_as_they_were(texts):
    assert read_batch(framed(write_batch(1, texts, None)))[1] == texts


def test_answers_arrive_as_they_were():
    rows = np.random.default_rng(0).random((3, 4), dtype=np.float32)
    sent = [Computed(rows, 5, True), NoAnswerError("no", 504), Computed(rows[:1])]
    first, second, third = read_answers(framed(write_answers(3, sent)))
    assert isinstance(first, Computed) and (first.members, first.late) == (5, True)
    np.testing.assert_array_equal(first.probabilities, rows)
    assert isinstance(second, NoAnswerError) and (second.message, second.status) == ("no", 504)
    assert isinstance(third, Computed) and third.probabilities.shape == (1, 4)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 12,
        write_frame({}, [np.zeros(LIMIT + 1, np.uint8)]),
        b"\2\0\0\0" + bytes(8) + b"{]",
        b"\2\0\0\0" + bytes(8) + b"[]",
    ],
)
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(FrameError):
        framed(data)


@pytest.mark.parametrize(
    "arrays",
    [[["|O", [1]]], [["<f8", [1]]], [["<f4", [9]]], [["<f4", [-1]]], [["<f4", [2]], ["<f4", [1]]]],
)
def test_arrays_that_are_not_there_are_refused(arrays):
    with pytest.raises(FrameError):
        Frame({"arrays": arrays}, bytes(8)).arrays()


# --- sockets -----------------------------------------------------------------------------------


async def until(done) -> None:
    async with asyncio.timeout(180):
        while not done():
            await asyncio.sleep(0.005)


def ones(value: int) -> list[Inputs]:
    return [np.full((1, 1, 1, 1), value, np.uint8)]


def value(answers: list[Computed | NoAnswerError]) -> float:
    (answer,) = answers
    assert isinstance(answer, Computed)
    return float(answer.probabilities[0, 0])


def test_a_pool_asks_its_replicas_and_each_gets_its_own_answer():
    async def run() -> None:
        echo = Echo()
        listener = Listener(echo, "127.0.0.1")
        task = asyncio.ensure_future(listener.run())
        pool = WirePool(STARTED)
        assert not await pool.ready()
        pool.meet([listener.place])
        answers = await asyncio.gather(*(computed(pool, ones(n), None) for n in range(50)))
        assert [value(one) for one in answers] == list(range(50))
        assert await pool.ready() and pool.capacity == 2
        (text,) = await computed(pool, [["a", "bcd"]], None)
        assert isinstance(text, Computed) and (text.members, text.late) == (2, True)
        bad, good = await computed(
            pool, [np.full((1, 1, 1, 1), 666, np.float32), np.ones((1, 1, 1, 1), np.float32)], None
        )
        assert isinstance(bad, NoAnswerError) and value([good]) == 1
        with pytest.raises(NoAnswerError, match="RuntimeError"):
            await computed(pool, ones(1), 13)
        large = np.full((3, 64, 256, 256), 1, np.uint8)
        (summed,) = await computed(pool, [large], None)
        assert isinstance(summed, Computed)
        np.testing.assert_array_equal(summed.probabilities, [[64 * 256 * 256]] * 3)
        await pool.close()
        await listener.leave()
        await task

    asyncio.run(run())


def test_batches_go_to_whoever_has_least_to_do():
    async def run() -> None:
        echoes = [Echo(), Echo()]
        listeners = [Listener(one, "127.0.0.1") for one in echoes]
        tasks = [asyncio.ensure_future(one.run()) for one in listeners]
        pool = WirePool(STARTED, batches=3, spare=1)
        pool.meet([one.place for one in listeners])
        await until(lambda: pool.capacity == 7)
        for one in echoes:
            one.may.clear()
        asked = [asyncio.ensure_future(computed(pool, ones(n), None)) for n in range(6)]
        await until(lambda: echoes[0].batches + echoes[1].batches == 6)
        assert [one.batches for one in echoes] == [3, 3]
        assert [one.under_way for one in listeners] == [3, 3]
        # One that nobody waits for any more still keeps its replica busy.
        for one in asked[:2]:
            one.cancel()
        await asyncio.sleep(0)
        more = [asyncio.ensure_future(computed(pool, ones(9), None)) for _ in range(2)]
        await until(lambda: echoes[0].batches + echoes[1].batches == 8)
        assert [one.batches for one in echoes] == [4, 4]
        for one in echoes:
            one.may.set()
        assert [value(one) for one in await asyncio.gather(*asked[2:], *more)] == [2, 3, 4, 5, 9, 9]
        await pool.close()
        for one, task in zip(listeners, tasks, strict=True):
            await one.leave()
            await task

    asyncio.run(run())


def test_a_replica_that_leaves_answers_what_it_has_and_gets_no_more():
    async def run() -> None:
        echoes = [Echo(), Echo()]
        listeners = [Listener(one, "127.0.0.1") for one in echoes]
        tasks = [asyncio.ensure_future(one.run()) for one in listeners]
        pool = WirePool(STARTED)
        pool.meet([one.place for one in listeners])
        await until(lambda: pool.capacity == 4)
        for one in echoes:
            one.may.clear()
        asked = [asyncio.ensure_future(computed(pool, ones(n), None)) for n in range(2)]
        await until(lambda: [one.batches for one in echoes] == [1, 1])
        leaving = asyncio.ensure_future(listeners[0].leave())
        await until(lambda: pool.capacity == 2)
        echoes[1].may.set()
        assert value(await computed(pool, ones(5), None)) == 5
        assert echoes[0].batches == 1 and not leaving.done()
        echoes[0].may.set()
        assert sorted([value(await one) for one in asked]) == [0, 1]
        await leaving
        await pool.close()
        await listeners[1].leave()
        await asyncio.gather(*tasks)

    asyncio.run(run())


@pytest.mark.parametrize("secret", ["", "0" * 64, "é"])
def test_strangers_are_shown_the_door(secret, monkeypatch):
    monkeypatch.setattr(listener_module, "_GREETING_SECONDS", 0.2)

    async def run() -> None:
        echo = Echo()
        listener = Listener(echo, "127.0.0.1")
        task = asyncio.ensure_future(listener.run())
        await asyncio.sleep(0)
        place = listener.place
        with pytest.raises(OSError, match="no replica answers"):
            await Connection.open(Place(place.host, place.port, secret), lambda: None)
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", write_batch(1, ones(1), None)):
            reader, writer = await asyncio.open_connection(place.host, place.port)
            writer.write(said)
            assert await reader.read() == b""
            writer.close()
        assert echo.batches == 0
        await listener.leave()
        await task

    asyncio.run(run())


def test_a_gateway_that_is_gone_before_its_answer_is_no_failure(caplog):
    async def run() -> None:
        echo = Echo()
        echo.may.clear()
        listener = Listener(echo, "127.0.0.1")
        task = asyncio.ensure_future(listener.run())
        await asyncio.sleep(0)
        pool = WirePool(STARTED)
        pool.meet([listener.place])
        await until(lambda: pool.capacity == 2)
        asked = asyncio.ensure_future(computed(pool, ones(1), None))
        await until(lambda: echo.batches == 1)
        await pool.close()
        with pytest.raises(ReplicaLostError):
            await asked
        await until(lambda: not listener._connections)
        echo.may.set()
        await until(lambda: not listener.under_way)
        await listener.leave()
        await task
        gc.collect()

    asyncio.run(run())
    assert not caplog.records


REPLICA = """
import asyncio, json, sys
from orchestrator.serve.wire.listener import Listener

class Hangs:
    async def compute(self, requests, seconds):
        await asyncio.sleep(1000)

async def main():
    listener = Listener(Hangs(), "127.0.0.1")
    print(json.dumps([listener.place.port, listener.place.secret]), flush=True)
    await listener.run()

asyncio.run(main())
"""


def test_a_killed_replica_is_lost_at_once_and_another_one_found():
    process = subprocess.Popen(
        [sys.executable, "-c", REPLICA], stdout=subprocess.PIPE, env=os.environ
    )
    assert process.stdout is not None
    port, secret = json.loads(process.stdout.readline())
    killed = Place("127.0.0.1", port, secret)

    async def run() -> None:
        pool = WirePool(STARTED)
        pool.meet([killed])
        lost = asyncio.ensure_future(computed(pool, ones(1), None))
        await until(lambda: any(one.under_way for one in pool._usable()))
        process.send_signal(signal.SIGKILL)
        with pytest.raises(ReplicaLostError):
            await lost
        # Asked meanwhile, it waits for the replica that takes the other's place.
        waits = asyncio.ensure_future(computed(pool, ones(2), None))
        await asyncio.sleep(0.05)
        listener = Listener(Echo(), "127.0.0.1")
        task = asyncio.ensure_future(listener.run())
        pool.meet([killed, listener.place])
        assert value(await waits) == 2
        # An operator that has just restarted knows of none: what answers is kept.
        pool.meet([])
        assert value(await computed(pool, ones(3), None)) == 3
        await pool.close()
        await listener.leave()
        await task

    try:
        asyncio.run(run())
    finally:
        process.kill()
        process.wait()


def test_without_a_replica_a_batch_is_given_back(monkeypatch):
    monkeypatch.setattr("orchestrator.serve.wire.pool._WAIT_SECONDS", 0.05)

    async def run() -> None:
        pool = WirePool(STARTED)
        with pytest.raises(ReplicaLostError, match="has no replica"):
            await computed(pool, ones(1), None)

    asyncio.run(run())
