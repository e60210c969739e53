"""Ensembles under deadlines and early exit, against the definitions."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import torch
from torch import Tensor

from orchestrator.serve.backend import Computed, NoAnswerError
from orchestrator.serve.compute import LocalPool, answer_together, due_in
from orchestrator.serve.executors.base import ComputedRows
from orchestrator.serve.executors.ensemble import MembersExecutor, Patience, StackedExecutor
from orchestrator.serve.executors.front import Front
from orchestrator.serve.executors.graph import export
from orchestrator.serve.executors.stacked import Stack, stacked_forward
from orchestrator.serve.executors.tally import Tally
from orchestrator.serve.predictor import load_predictor
from tests.serve.serving import SHAPE, make_ensemble, make_run

WEIGHTS = [0.2, 0.5, 0.3]


@pytest.fixture(scope="module", params=["probabilities", "logits"])
def front(request, tmp_path_factory) -> Front:
    root = tmp_path_factory.mktemp(request.param)
    runs = [make_run(root / f"{seed}", seed) for seed in range(3)]
    return Front(load_predictor(make_ensemble(root / "e", runs, WEIGHTS, request.param)))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, *SHAPE), dtype=np.uint8)


def combined(logits: dict[int, np.ndarray], combine: str) -> np.ndarray:
    """The definition, in fp64: members' weighted mean, weights scaled to sum to 1."""
    values = {
        m: torch.from_numpy(rows).double() if combine == "logits" else _softmax(rows)
        for m, rows in logits.items()
    }
    total = sum(WEIGHTS[m] for m in values)
    mean = sum(WEIGHTS[m] / total * rows for m, rows in values.items())
    return (mean.softmax(-1) if combine == "logits" else mean).numpy()


def _softmax(rows: np.ndarray) -> Tensor:
    return torch.from_numpy(rows).double().softmax(-1)


class Clock:
    """Time that passes only when a member computes."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def timed(front: Front, clock: Clock, seconds: list[float]):
    """The real networks; member m takes `seconds[m]` on the clock."""

    def make(number: int):
        def forward(x: Tensor) -> Tensor:
            clock.now += seconds[number]
            return front.networks[number](x)

        return forward

    return [make(number) for number in range(3)]


@torch.no_grad()
def members_logits(front: Front, pixels: np.ndarray) -> list[np.ndarray]:
    xs = front(pixels)
    return [network(x).numpy() for network, x in zip(front.networks, xs, strict=True)]


@pytest.mark.parametrize("threads", [1, 2])
def test_all_members_by_their_weights(front, pixels, threads):
    before = torch.get_num_threads()
    executor = MembersExecutor(front, front.networks, "", 4, threads=threads)
    found = executor.run(pixels, None)  # in parts of 4 and 2
    expected = combined(dict(enumerate(members_logits(front, pixels))), front.card.combine)
    assert np.abs(found.probabilities - expected).max() <= 1e-6
    assert (found.members, found.late) == (3, False)
    assert torch.get_num_threads() == before


def test_a_deadline_leaves_out_the_lightest(front, pixels):
    clock = Clock()
    executor = MembersExecutor(front, timed(front, clock, [1, 1, 1]), "", 8, clock=clock)
    found = executor.run(pixels, 2.5)
    logits = members_logits(front, pixels)
    expected = combined({1: logits[1], 2: logits[2]}, front.card.combine)
    assert np.abs(found.probabilities - expected).max() <= 1e-6
    assert (found.members, found.late) == (2, True)
    assert clock.now == 102  # the third would have been late, and was not begun


def test_time_enough_for_all_is_not_late(front, pixels):
    clock = Clock()
    executor = MembersExecutor(front, timed(front, clock, [1, 1, 1]), "", 8, clock=clock)
    found = executor.run(pixels, 3.5)
    assert (found.members, found.late) == (3, False)


def test_fewer_than_the_quorum_is_no_answer(front, pixels):
    clock = Clock()
    forwards = timed(front, clock, [1, 1, 1])
    executor = MembersExecutor(front, forwards, "", 8, Patience(quorum=3), clock=clock)
    with pytest.raises(NoAnswerError, match="2 of the 3 members") as caught:
        executor.run(pixels, 1.5)
    assert caught.value.status == 504
    first, second = answer_together(executor, [pixels[:1], pixels[1:]], due_in(1.5))
    assert isinstance(first, NoAnswerError) and isinstance(second, NoAnswerError)
    assert first.status == 504


def test_time_runs_while_another_batch_is_computed(front, pixels):
    release, given = threading.Event(), []

    class First(MembersExecutor):
        def run(self, inputs, seconds):
            given.append(seconds)
            release.wait(60)
            return super().run(inputs, seconds)

    async def story():
        pool = LocalPool(First(front, timed(front, Clock(), [0, 0, 0]), "", 8))
        both = [asyncio.ensure_future(pool.compute([pixels], 100.0)) for _ in range(2)]
        await asyncio.sleep(0.1)
        release.set()
        await asyncio.gather(*both)
        await pool.close()

    asyncio.run(story())
    assert given[1] <= 100 - 0.05


def test_side_by_side_a_hung_member_is_left_out(front, pixels):
    release = threading.Event()

    def hung(x: Tensor) -> Tensor:
        release.wait(30)
        return front.networks[0](x)

    forwards = [hung, front.networks[1], front.networks[2]]
    executor = MembersExecutor(front, forwards, "", 8, Patience(quorum=2), threads=2)
    strict = MembersExecutor(front, forwards, "", 8, Patience(quorum=3), threads=2)
    logits = members_logits(front, pixels)
    try:
        found = executor.run(pixels, 1.0)
        expected = combined({1: logits[1], 2: logits[2]}, front.card.combine)
        assert np.abs(found.probabilities - expected).max() <= 1e-6
        assert (found.members, found.late) == (2, True)
        with pytest.raises(NoAnswerError) as caught:
            strict.run(pixels, 0.2)
        assert caught.value.status == 504
    finally:
        release.set()


def test_a_stack_that_would_be_late_gives_way_to_members(front, pixels):
    clock = Clock()
    device = torch.device("cpu")
    x = front(pixels)[0]
    graph = export(front.networks[0], x)
    stack = stacked_forward(Stack(graph, front.networks, device, "fp32", front.same_inputs), x)

    def slow(xs):
        clock.now += 3
        return stack(xs)

    alone = MembersExecutor(front, timed(front, clock, [1, 1, 1]), "", 8, clock=clock)
    executor = StackedExecutor(front, slow, alone, "", 8, clock=clock)
    every = executor.run(pixels, 10.0)
    logits = members_logits(front, pixels)
    expected = combined(dict(enumerate(logits)), front.card.combine)
    assert np.abs(every.probabilities - expected).max() <= 1e-5
    assert (every.members, every.late) == (3, False)
    some = executor.run(pixels, 2.5)
    assert (some.members, some.late) == (2, True)
    expected = combined({1: logits[1], 2: logits[2]}, front.card.combine)
    assert np.abs(some.probabilities - expected).max() <= 1e-6


# --- early exit ----------------------------------------------------------------------------


def leaves(p: float, quorum: int, rows: list[np.ndarray], combine: str) -> tuple[np.ndarray, int]:
    """The definition for one sample: members by weight until they agree with probability p."""
    asked: dict[int, np.ndarray] = {}
    for member in (1, 2, 0):
        asked[member] = rows[member]
        answer = combined(asked, combine)
        agree = len({int(np.argmax(row)) for row in asked.values()}) == 1
        if len(asked) >= quorum and agree and answer.max() >= p:
            break
    return answer, len(asked)


@pytest.mark.parametrize(("threads", "quorum"), [(1, 1), (1, 2)])
def test_early_exit_is_decided_sample_by_sample(front, threads, quorum):
    pixels = np.random.default_rng(1).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    pixels[20:] //= 8  # darker ones, of which the networks think otherwise
    logits = members_logits(front, pixels)
    sizes = [0, 0, 0]

    def counted(number: int):
        def forward(x: Tensor) -> Tensor:
            sizes[number] += len(x)
            return front.networks[number](x)

        return forward

    first = np.sort(combined({1: logits[1]}, front.card.combine).max(1))
    p = float(first[19:21].mean())  # half of the samples pass it at once, if they may
    patience = Patience(quorum, p)
    executor = MembersExecutor(front, [counted(n) for n in range(3)], "", 64, patience, threads)
    found = executor.run(pixels, None)
    assert isinstance(found, ComputedRows) and found.members_of is not None
    for sample in range(len(pixels)):
        rows = [member[sample] for member in logits]
        expected, members = leaves(p, quorum, rows, front.card.combine)
        assert found.members_of[sample] == members
        assert np.abs(found.probabilities[sample] - expected).max() <= 1e-6
    assert len(set(found.members_of)) > 1
    assert sizes[1] == 40 and sum(sizes) == found.members_of.sum()
    assert found.members == found.members_of.min() and not found.late


def test_each_request_counts_its_own_members(front, pixels):
    executor = MembersExecutor(front, front.networks, "", 64, Patience(1, 0.999999))
    easy = np.zeros((2, *SHAPE), np.uint8)
    sure = combined({1: members_logits(front, easy)[1]}, front.card.combine).max()
    executor = MembersExecutor(front, front.networks, "", 64, Patience(1, float(sure) * 0.999))
    together = executor.run(np.concatenate([easy, pixels]), None)
    assert isinstance(together, ComputedRows) and together.members_of is not None
    first, second = answer_together(executor, [easy, pixels])
    assert isinstance(first, Computed) and isinstance(second, Computed)
    assert first.members == together.members_of[:2].min() == 1
    assert second.members == together.members_of[2:].min()


def test_members_that_disagree_decide_nothing():
    tally = Tally(2, 3, "probabilities")
    tally.add(torch.tensor([[9.0, 0, 0], [9.0, 0, 0]]), 0.9)
    assert tally.undecided(0.9).tolist() == []
    tally.add(torch.tensor([[0, 9.0, 0], [9.0, 0, 0]]), 0.1)
    assert tally.undecided(0.5).tolist() == [0]  # 0.9 for the first label, but not of all


# --- memory --------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_computed_in_halves(front, pixels):
    sizes: list[int] = []

    def narrow(network):
        def forward(x: Tensor) -> Tensor:
            if len(x) > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
            sizes.append(len(x))
            return network(x)

        return forward

    executor = MembersExecutor(front, [narrow(n) for n in front.networks], "", 64)
    expected = combined(dict(enumerate(members_logits(front, pixels))), front.card.combine)
    (alone,) = answer_together(executor, [pixels])
    assert isinstance(alone, Computed)
    assert np.abs(alone.probabilities - expected).max() <= 1e-6
    assert alone.members == 3 and max(sizes) <= 2
    parts = answer_together(executor, [pixels[:1], pixels[1:]])
    rows = [one.probabilities for one in parts if isinstance(one, Computed)]
    assert np.abs(np.concatenate(rows) - expected).max() <= 1e-6
