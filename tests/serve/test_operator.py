"""The operator and gateways' links, in one process: changes, what is learnt, restarts."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.backend import Ask
from orchestrator.serve.compute import LocalFleet
from orchestrator.serve.control import state as state_module
from orchestrator.serve.control.control import LoadError
from orchestrator.serve.control.link import Link
from orchestrator.serve.control.operator import Operator
from orchestrator.serve.control.table import Table, VersionSpec
from orchestrator.serve.traffic.batcher import QueueLimits
from orchestrator.serve.traffic.dispatcher import Dispatcher
from orchestrator.serve.traffic.rule import Outcome
from tests.serve.serving import make_run

PLAIN = ServeConfig(executor="torch", max_batch=8)
PIXELS = np.full((1, 1, 12, 12), 0.5, np.float32)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    found = {version: make_run(folder / f"v{version}", int(version)) for version in "123"}
    found["other"] = make_run(folder / "other", 4, label_names=("a", "b", "c"))
    found["empty"] = folder / "empty"
    return found


def spec(roots: dict[str, Path], version: str, name: str = "hats", root: str = "") -> VersionSpec:
    return VersionSpec(name, version, str(roots[root or version]))


class Gateway:
    """A link and its dispatcher, as a gateway process has them."""

    def __init__(self, operator: Operator, fleet: LocalFleet) -> None:
        self.dispatcher = Dispatcher(QueueLimits(), lambda *args: self.link.observe(*args))
        self.link = Link(operator, self.dispatcher, fleet.connect)

    async def ask(self, **options: str) -> str:
        return (await self.dispatcher.predict("hats", PIXELS, Ask(**options))).version


def test_the_last_version_answers_and_the_first_can_go(roots):
    async def story() -> None:
        fleet = LocalFleet(PLAIN)
        operator = Operator(fleet)
        gateway = Gateway(operator, fleet)
        await operator.load(spec(roots, "1"))
        following = asyncio.ensure_future(gateway.link.run())
        await until(lambda: "hats" in gateway.dispatcher.cards)
        assert await gateway.ask() == "1"
        await operator.load(spec(roots, "2"))
        await until(lambda: len(gateway.dispatcher.cards["hats"]) == 2)
        assert await gateway.ask() == "2" and await gateway.ask(version="1") == "1"
        await operator.unload("hats", "1")
        assert list(gateway.dispatcher.cards["hats"]) == ["2"]
        messages = [event.message for event in gateway.link.table.events]
        assert [text.split()[0] for text in messages] == ["version", "version", "unloaded:"]
        await operator.unload("hats")
        assert not gateway.dispatcher.cards
        following.cancel()

    asyncio.run(story())


async def until(done) -> None:
    async with asyncio.timeout(180):
        while not done():
            await asyncio.sleep(0.01)


def test_a_swap_under_load_loses_nothing(roots):
    async def story() -> None:
        fleet = LocalFleet(PLAIN)
        operator = Operator(fleet)
        gateway = Gateway(operator, fleet)
        await operator.load(spec(roots, "1"))
        following = asyncio.ensure_future(gateway.link.run())
        await until(lambda: "hats" in gateway.dispatcher.cards)
        answered: list[str] = []
        swapped = asyncio.Event()

        async def client() -> None:
            while not swapped.is_set():
                answered.append(await gateway.ask())

        clients = [asyncio.ensure_future(client()) for _ in range(8)]
        await until(lambda: len(answered) > 50)
        await operator.load(spec(roots, "2"))
        await operator.unload("hats", "1")
        known = len(answered)
        await until(lambda: len(answered) > known + 50)
        swapped.set()
        await asyncio.gather(*clients)  # none has failed
        assert set(answered) == {"1", "2"}
        # No request goes back once the new version answers, but for those under way.
        assert "1" not in answered[known + 8 :]
        following.cancel()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("version", "root", "status", "message"),
    [
        ("2", "empty", 400, "no trained model"),
        ("2", "other", 400, "share input shape and labels"),
        ("1", "2", 409, "served from another folder"),
    ],
)
def test_a_bad_version_changes_nothing(roots, version, root, status, message):
    async def story() -> None:
        operator = Operator(LocalFleet(PLAIN))
        await operator.load(spec(roots, "1"))
        before = await operator.table("g", 0)
        with pytest.raises(LoadError, match=message) as refused:
            await operator.load(spec(roots, version, root=root))
        assert refused.value.status == status
        assert await operator.table("g", 0) == before
        await operator.load(spec(roots, "1"))  # the same again is no change
        assert await operator.table("g", 0) == before

    asyncio.run(story())


def test_traffic_and_versions_keep_together(roots):
    async def story() -> None:
        operator = Operator(LocalFleet(PLAIN))
        for version in "12":
            await operator.load(spec(roots, version))
        with pytest.raises(LoadError, match=r"names versions \['9'\]"):
            await operator.set_rule("hats", {"type": "weighted", "weights": {"1": 1.0, "9": 1.0}})
        with pytest.raises(LoadError, match="not served") as refused:
            await operator.set_rule("caps", {"type": "latest"})
        assert refused.value.status == 404
        await operator.set_rule("hats", {"type": "weighted", "weights": {"1": 1.0, "2": 1.0}})
        with pytest.raises(LoadError, match="change the traffic first") as refused:
            await operator.unload("hats", "1")
        assert refused.value.status == 409
        for name, version in (("hats", "9"), ("caps", "1"), ("caps", "")):
            with pytest.raises(LoadError, match="not served"):
                await operator.unload(name, version)
        await operator.unload("hats")

    asyncio.run(story())


CANARY = {
    "type": "canary",
    "stable": "1",
    "canary": "2",
    "steps": [0.5, 1.0],
    "requests_per_step": 20,
}


def outcomes(version: str, count: int, failed: int = 0) -> list[Outcome]:
    return [Outcome(version, n < failed, 0.01) for n in range(count)]


def test_a_canary_that_fails_is_rolled_back_and_every_gateway_knows(roots):
    async def story() -> None:
        operator = Operator(LocalFleet(PLAIN))
        for version in "12":
            await operator.load(spec(roots, version))
        await operator.set_rule("hats", CANARY)
        table = await operator.table("g", 0)
        assert table.models["hats"].state["share"] == 0.5 and table.models["hats"].learns
        await operator.report("g", {"hats": outcomes("1", 100) + outcomes("2", 20, 9)}, {})
        table = await operator.table("g", table.generation)
        assert table.models["hats"].state["share"] == 0
        assert "rolled back" in table.events[-1].message and table.events[-1].model == "hats"

    asyncio.run(story())


def test_what_was_learnt_survives_a_restart(roots, tmp_path):
    state = tmp_path / "state.json"
    rewards = [("1", 0.25)] * 4 + [("2", 1.0)] * 6

    async def first() -> Table:
        operator = Operator(LocalFleet(PLAIN), state)
        rules = {"hats": {"type": "bandit", "versions": ["1", "2"]}, "caps": CANARY}
        names = [("hats", "1"), ("hats", "2"), ("caps", "1"), ("caps", "2")]
        await operator.begin([spec(roots, version, name) for name, version in names], rules)
        await operator.report("g", {"caps": outcomes("1", 50) + outcomes("2", 19)}, {})
        await operator.report("g", {}, {"hats": rewards})
        kept = json.loads(state.read_text())
        assert kept["models"]["hats"]["memory"]["posteriors"]["1"] == [1, 1]  # not at once,
        table = await operator.table("g", (await operator.table("g", 0)).generation)
        assert table.models["hats"].state["posteriors"] == {"1": [2, 4], "2": [7, 1]}
        return table  # but once a second

    async def second(known: int) -> None:
        operator = Operator(LocalFleet(PLAIN), state)
        # Before it has restored what is served it publishes nothing.
        beginning = asyncio.ensure_future(operator.begin([spec(roots, "3")], {}))
        while (table := await operator.table("g", known)).generation <= known:
            assert table == Table()
        await beginning  # and the state file has the say
        assert {name: [*entry.versions] for name, entry in table.models.items()} == {
            "hats": ["1", "2"],
            "caps": ["1", "2"],
        }
        assert table.models["hats"].state["posteriors"] == {"1": [2, 4], "2": [7, 1]}
        # The 20th answer ends the step.
        await operator.report("g", {"caps": outcomes("2", 1)}, {})
        table = await operator.table("g", table.generation)
        assert table.models["caps"].state["step"] == 2

    asyncio.run(second(asyncio.run(first()).generation))


def test_a_version_whose_folder_is_gone_does_not_stop_the_others(roots, tmp_path):
    state = tmp_path / "state.json"
    gone = make_run(tmp_path / "gone", 9)

    async def first() -> None:
        operator = Operator(LocalFleet(PLAIN), state)
        await operator.load(spec(roots, "1"))
        await operator.load(VersionSpec("hats", "2", str(gone)))

    asyncio.run(first())
    (gone / "model.json").unlink()

    async def second() -> None:
        operator = Operator(LocalFleet(PLAIN), state)
        assert await operator.restore()
        table = await operator.table("g", 0)
        assert list(table.models["hats"].versions) == ["1"]
        assert "did not start again" in table.events[-1].message

    asyncio.run(second())


def test_the_disk_is_written_about_once_a_second(roots, tmp_path, monkeypatch):
    writes = []
    real = state_module.write_json
    monkeypatch.setattr(
        state_module, "write_json", lambda *args: (writes.append(time.monotonic()), real(*args))
    )

    async def story() -> None:
        operator = Operator(LocalFleet(PLAIN), tmp_path / "state.json")
        await operator.load(spec(roots, "1"))
        await operator.set_rule("hats", {"type": "bandit", "versions": ["1"]})
        writes.clear()
        for _ in range(200):
            await operator.report("g", {}, {"hats": [("1", 1.0)]})
            await asyncio.sleep(0.005)
        await asyncio.sleep(1.2)
        kept = json.loads((tmp_path / "state.json").read_text())
        assert kept["models"]["hats"]["memory"]["posteriors"]["1"] == [201, 1]
        # Each is followed by a second without any.
        assert all(later - one >= 0.99 for one, later in itertools.pairwise(writes))

    asyncio.run(story())


def test_reports_that_do_not_arrive_are_told_again(roots):
    async def story() -> None:
        fleet = LocalFleet(PLAIN)
        operator = Operator(fleet)
        gateway = Gateway(operator, fleet)
        await operator.load(spec(roots, "1"))
        await operator.set_rule("hats", {"type": "bandit", "versions": ["1"]})
        await gateway.link.follow_once()
        report, operator.report = operator.report, unreachable
        gateway.link.reward("hats", "1", 1.0)
        await gateway.link.report_once()
        operator.report = report
        gateway.link.reward("hats", "1", 0.0)
        await gateway.link.report_once()
        table = await operator.table("g", gateway.link.table.generation)
        assert table.models["hats"].state["posteriors"] == {"1": [2, 2]}

    async def unreachable(*args: object) -> None:
        raise ConnectionError

    asyncio.run(story())


def test_a_shadow_gets_copies_that_nobody_waits_for(roots):
    async def story() -> None:
        fleet = LocalFleet(ServeConfig(executor="torch", max_batch=4))
        operator = Operator(fleet)
        seen: list[Outcome] = []
        dispatcher = Dispatcher(QueueLimits(), lambda name, outcome: seen.append(outcome))
        link = Link(operator, dispatcher, fleet.connect)
        for version in "12":
            await operator.load(spec(roots, version))
        await operator.set_rule("hats", {"type": "latest", "shadows": ["2"]})
        await link.follow_once()
        gate = asyncio.Event()
        pools = {
            one.pool.card.version: one.pool for one in dispatcher._models["hats"].queues.values()
        }
        compute = pools["2"].compute

        async def stuck(*args: object) -> object:
            await gate.wait()
            return await compute(*args)

        pools["2"].compute = stuck
        # The shadow hangs; the other version answers all the same.
        answers = [await dispatcher.predict("hats", PIXELS, Ask()) for _ in range(60)]
        assert {one.version for one in answers} == {"1"}
        assert not [one for one in seen if one.shadow]
        # Its own answers do not wait behind copies: it has a queue for each.
        asked = asyncio.ensure_future(dispatcher.predict("hats", PIXELS, Ask(version="2")))
        gate.set()
        assert (await asked).version == "2"
        await until(lambda: len([one for one in seen if one.shadow]) >= 17)
        await asyncio.sleep(0.05)
        # 4 batches of 4 wait at most, and one is under way.
        assert len([one for one in seen if one.shadow]) == 17
        assert not any(one.failed for one in seen)

    asyncio.run(story())
