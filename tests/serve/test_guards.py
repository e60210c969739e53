from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from orchestrator.serve.guards.bodies import BodyGuard, BodyLimits
from orchestrator.serve.guards.leaving import LeavingClients
from orchestrator.serve.guards.rates import Buckets, address_of
from orchestrator.serve.guards.sweeping import Sweeper

HEAD: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}


def test_a_bucket_holds_twice_a_second_and_fills_at_its_rate():
    buckets = Buckets(rate=5)
    assert [buckets.take("a", 0.0) for _ in range(10)] == [0.0] * 10
    assert buckets.take("a", 0.0) == pytest.approx(0.2)
    assert buckets.take("a", 0.1) == pytest.approx(0.1)
    assert buckets.take("a", 0.2) == 0.0
    assert buckets.take("a", 0.2) == pytest.approx(0.2)
    assert [buckets.take("a", 100.0) for _ in range(11)] == [0.0] * 10 + [pytest.approx(0.2)]


def test_a_slow_rate_lets_one_request_through():
    buckets = Buckets(rate=0.1)
    assert buckets.take("a", 0.0) == 0.0
    assert buckets.take("a", 0.0) == pytest.approx(10)


def test_clients_have_buckets_of_their_own_and_few_are_remembered():
    buckets = Buckets(rate=0.5, clients=100)
    for number in range(1000):
        assert buckets.take(str(number), 0.0) == 0.0
    assert len(buckets) == 100
    assert buckets.take("999", 0.0) > 0  # asked last, so it is known
    assert buckets.take("0", 0.0) == 0.0  # forgotten


@pytest.mark.parametrize(
    ("peer", "told", "address"),
    [
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "6.6.6.6", "10.0.0.1"),
        ("127.0.0.1", None, "127.0.0.1"),
        ("127.0.0.1", "10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "6.6.6.6, 10.0.0.1", "10.0.0.1"),
    ],
)
def test_only_a_proxy_on_this_machine_is_believed(peer, told, address):
    headers = [(b"x-forwarded-for", told.encode())] if told else []
    assert address_of({"client": (peer, 5), "headers": headers}) == address


def test_a_proxy_s_own_line_is_believed_and_not_its_client_s():
    headers = [(b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"10.0.0.1")]
    assert address_of({"client": ("127.0.0.1", 5), "headers": headers}) == "10.0.0.1"


def through(
    guard: Any, messages: list[dict[str, Any]], scope: dict[str, Any] = HEAD
) -> list[dict[str, Any]]:
    """What a guard sends for these messages of a client; then nothing more comes."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(30)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard(dict(scope), receive, send))
    return sent


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes that came."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def piece(size: int, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": bytes(size), "more_body": more}


def test_bodies_are_released_however_they_end():
    limits = BodyLimits(bytes=100, seconds=30, room=150)
    guard = BodyGuard(echo, limits)
    assert through(guard, [piece(60, True), piece(40, False)])[1]["body"] == b"100"
    assert through(guard, [piece(60, True), piece(41, False)])[0]["status"] == 413
    limits.seconds = 0.05
    assert through(BodyGuard(echo, limits), [piece(60, True)])[0]["status"] == 408
    assert limits.held == 0


def test_nothing_is_kept_of_a_body_that_was_refused():
    def bodies() -> list[object]:
        return [one for one in gc.get_objects() if type(one).__name__ == "_Body"]

    gc.disable()
    try:
        others = bodies()  # of servers that other tests had
        guard = BodyGuard(echo, BodyLimits(bytes=100, seconds=30))
        large = through(guard, [piece(101, False)])
        packed = HEAD | {"headers": [(b"content-encoding", b"gzip")]}
        broken = through(guard, [piece(10, False)], packed)
        assert [large[0]["status"], broken[0]["status"]] == [413, 400]
        assert all(any(one is other for other in others) for one in bodies())
    finally:
        gc.enable()


def test_bodies_share_a_room():
    limits = BodyLimits(bytes=100, seconds=30, room=150)
    statuses: list[int] = []

    async def second(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        held = await asyncio.to_thread(through, BodyGuard(echo, limits), [piece(60, False)])
        statuses.append(held[0]["status"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    for size in (100, 90):
        through(BodyGuard(second, limits), [piece(size, False)])
    assert statuses == [503, 200] and limits.held == 0


def test_a_refusal_takes_the_place_of_what_routes_make_of_it():
    """A framework that turns the error into one of its own does not hide the reason."""

    async def hides(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"can't parse"})

    guard = BodyGuard(hides, BodyLimits(bytes=10, seconds=30))
    start, body = through(guard, [piece(11, False)])
    assert start["status"] == 413 and b"10 bytes" in body["body"]


def test_who_leaves_is_given_up_and_others_are_not():
    ended: list[str] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        try:
            await asyncio.sleep(30 if scope["path"] == "/gone" else 0.2)
            ended.append("answered")
        except asyncio.CancelledError:
            ended.append("given up")
            raise

    async def ask(path: str) -> None:
        messages = [piece(1, False)]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await asyncio.sleep(0 if path == "/gone" else 30)
            return {"type": "http.disconnect"}

        await LeavingClients(slow)(HEAD | {"path": path}, receive, None)  # type: ignore[arg-type]
        assert asyncio.current_task().cancelling() == 0

    async def both() -> None:
        await asyncio.gather(ask("/gone"), ask("/here"))
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(both())
    assert sorted(ended) == ["answered", "given up"]


def test_whoever_cancels_the_server_is_obeyed():
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(30)

    async def main() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(30)
            return {}

        task = asyncio.ensure_future(LeavingClients(slow)(dict(HEAD), receive, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_sweeper_looks_as_long_as_there_is_anything():
    looked: list[tuple[str, float]] = []

    async def main() -> None:
        sweeper = Sweeper[str](0.01, lambda one, seconds: looked.append((one, seconds)))
        for _ in range(2):  # it begins again
            looked.clear()
            sweeper.add("a")
            while len(looked) < 3:
                await asyncio.sleep(0.001)
            sweeper.discard("a")
            while sweeper._loop is not None:
                await asyncio.sleep(0.001)
            seconds = [age for _, age in looked]
            assert seconds == sorted(seconds) and seconds[0] >= 0.009 and len(sweeper) == 0

    asyncio.run(main())
