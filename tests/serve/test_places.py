"""Replicas keep themselves on a list, and fall off it when they are silent."""

import asyncio

from orchestrator.serve.compute import LocalFleet
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.places import Places
from orchestrator.serve.wire.place import Place

HERE, THERE = Place("127.0.0.1", 1, "a"), Place("127.0.0.1", 2, "b")


def test_the_silent_fall_off():
    places = Places()
    assert places.enlist("hats@1", HERE, 0) and places.enlist("hats@1", THERE, 0)
    assert not places.enlist("hats@1", HERE, 8)
    assert not places.expire(9.9)
    assert places.listed() == {"hats@1": (HERE, THERE)}
    assert places.expire(10) and places.listed() == {"hats@1": (HERE,)}
    assert places.expire(18) and not places.listed()


def test_gateways_are_told_of_new_places_but_not_before_the_first_table():
    async def run() -> None:
        operator = Operator(LocalFleet())
        await operator.enlist("hats@1", HERE)
        assert operator.current.generation == 0 and not operator.current.places
        await operator.begin([], {})
        first = operator.current
        assert first.places == {"hats@1": (HERE,)}
        waiting = asyncio.ensure_future(operator.table("gateway", first.generation))
        await asyncio.sleep(0)
        await operator.enlist("hats@1", HERE)  # says it again: nothing new
        assert operator.current is first
        await operator.enlist("hats@1", THERE)
        told = await asyncio.wait_for(waiting, 60)
        assert told.generation > first.generation
        assert told.places == {"hats@1": (HERE, THERE)}

    asyncio.run(run())
