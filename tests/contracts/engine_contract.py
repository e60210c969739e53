"""The conformance suite of engines. A new engine is tested by inheriting `EngineContract`.

class TestMine(EngineContract):
    subjects = (Subject("mine", MineConfig(), workers=2),)
"""

from __future__ import annotations

import functools
import pickle
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from orchestrator.config.base import Part
from orchestrator.config.engines import PlainEngineConfig
from orchestrator.host import GroupWorker, SingleWorker, Worker
from tests.contracts.engine_cases import CASES, CLIP, LR, Lab, Net, Setting

FP32 = Setting("fp32", "contiguous")
BF16 = Setting("bf16", "channels_last")


@dataclass(frozen=True)
class Subject:
    """An engine to be tested, on so many processes."""

    name: str
    config: Part
    workers: int = 1


REFERENCE = Subject("plain", PlainEngineConfig())
BF16_CASES = ("parity", "resumption", "evaluation")
Outcome = dict[str, list[dict[str, Any]]]
"""What each case returned, rank by rank."""


def also_in_bf16(test: Any) -> Any:
    """Marks what lower precision could break; the rest is tested in fp32."""
    test.settings = (FP32, BF16)
    return test


class EngineContract:
    """What every engine owes. `subjects` share one group of processes per number of workers."""

    subjects: ClassVar[Sequence[Subject]]

    @pytest.fixture
    def reference(self, setting: Setting) -> Outcome:
        """What the plain engine makes of the same cases in one process."""
        return run_subjects((REFERENCE,), (setting,))[REFERENCE.name, setting]

    @pytest.fixture
    def outcome(self, subject: Subject, setting: Setting) -> Outcome:
        """What this engine made of the cases; all of a class run once, before its first test."""
        return run_subjects(tuple(self.subjects), (FP32, BF16))[subject.name, setting]

    @also_in_bf16
    def test_losses_and_weights_follow_the_plain_engine(
        self, outcome: Outcome, reference: Outcome, setting: Setting, subject: Subject
    ) -> None:
        mine, plain = outcome["parity"], reference["parity"]
        tolerance = (
            {"rtol": 1e-5, "atol": 1e-6} if setting == FP32 else {"rtol": 0.02, "atol": 2e-3}
        )
        torch.testing.assert_close(global_losses(mine), global_losses(plain), **tolerance)
        state, expected = mine[0]["state"], plain[0]["state"]
        for name, value in expected.items():
            # Ranks average their running statistics, one process updates them in turn.
            if "running" not in name and "tracked" not in name:
                torch.testing.assert_close(state[name], value, **tolerance)

    @also_in_bf16
    def test_resumes_to_the_bit(self, outcome: Outcome) -> None:
        for rank in outcome["resumption"]:
            (losses, state), (warm, warm_state) = rank["straight"], rank["warm"]
            fresh, fresh_state = rank["fresh"]
            assert losses == warm == fresh
            assert_same(state, warm_state)
            assert_same(state, fresh_state)

    @also_in_bf16
    def test_restores_only_the_model(self, outcome: Outcome) -> None:
        main = outcome["resumption"][0]
        assert_same(main["saved"], main["only_model"])
        assert not torch.equal(main["saved"]["head.weight"], main["straight"][1]["head.weight"])

    def test_clips_the_global_norm(self, outcome: Outcome) -> None:
        norms = outcome["clipping"][0]
        assert norms["free"] > 2 * CLIP
        assert norms["clipped"] == pytest.approx(CLIP, rel=1e-3)

    def test_frozen_parameters_stay(self, outcome: Outcome) -> None:
        parameters = {name for name, _ in Net().named_parameters()}
        changed = outcome["freezing"][0]["changed"] & parameters
        assert changed == parameters - {"first.weight", "first.bias"}

    def test_averages_batch_statistics(self, outcome: Outcome, subject: Subject) -> None:
        ranks = outcome["statistics"]
        own = torch.stack([rank["own"] for rank in ranks])
        for rank in ranks:
            torch.testing.assert_close(rank["averaged"], own.mean(0))
        torch.testing.assert_close(ranks[0]["exported"], own.mean(0))
        if subject.workers > 1:
            assert not torch.allclose(own[0], own[1])

    @also_in_bf16
    def test_evaluates_what_it_exports(self, outcome: Outcome, setting: Setting) -> None:
        main = outcome["evaluation"][0]
        assert torch.equal(main["first"], main["again"])
        assert main["names"] and set(main["names"]) == set(Net().state_dict())
        assert main["dtypes"] == {torch.float32, torch.int64}
        tolerance = 1e-5 if setting == FP32 else 0.02
        torch.testing.assert_close(main["first"], main["bare"], rtol=tolerance, atol=tolerance)

    def test_evaluates_empty_batches(self, outcome: Outcome) -> None:
        for rank in outcome["evaluation"]:
            assert rank["empty"] == (0, 5)

    def test_accumulation_does_not_change_the_step(self, outcome: Outcome) -> None:
        states = outcome["accumulation"][0]
        for name, value in states["few"].items():
            torch.testing.assert_close(states["many"][name], value, rtol=1e-5, atol=1e-6)

    def test_steps_at_the_given_rate(self, outcome: Outcome) -> None:
        moved = outcome["rates"][0]
        assert moved[0.0] == 0
        assert moved[LR] > 0
        assert moved[2 * LR] == pytest.approx(2 * moved[LR], rel=1e-3)


def pytest_parameters(metafunc: pytest.Metafunc) -> None:
    """Call from `pytest_generate_tests`: every test for every subject and setting of its class."""
    if "setting" in metafunc.fixturenames and metafunc.cls:
        settings = getattr(metafunc.function, "settings", (FP32,))
        metafunc.parametrize("setting", settings, ids=lambda s: s.precision)
    if "subject" in metafunc.fixturenames and metafunc.cls:
        metafunc.parametrize("subject", metafunc.cls.subjects, ids=lambda s: s.name)


def global_losses(ranks: list[dict[str, Any]]) -> torch.Tensor:
    """The mean loss over each global batch's samples, from every rank's mean over its own."""
    steps = torch.tensor([rank["steps"] for rank in ranks], dtype=torch.float64)
    loss, seen = steps[..., 0], steps[..., 1]
    return (loss * seen).sum(0) / seen.sum(0)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Equal to the bit, name by name."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@functools.cache
def run_subjects(
    subjects: tuple[Subject, ...], settings: tuple[Setting, ...]
) -> dict[tuple[str, Setting], Outcome]:
    """Every case of every subject: alone in this process, or in one group for each size.

    Raises:
        AssertionError: with the traceback, when a case failed in any process.
    """
    outcomes: dict[tuple[str, Setting], Outcome] = {}
    for workers in sorted({subject.workers for subject in subjects}):
        chosen = [subject for subject in subjects if subject.workers == workers]
        with tempfile.TemporaryDirectory() as folder:
            if workers == 1:
                run_rank(SingleWorker(), chosen, settings, Path(folder))
            else:
                torch.multiprocessing.spawn(
                    _in_group, (workers, chosen, settings, Path(folder)), nprocs=workers
                )
            ranks = [pickle.loads(path.read_bytes()) for path in sorted(Path(folder).glob("*.pkl"))]
        for key in ranks[0]:
            outcomes[key] = {case: [rank[key][case] for rank in ranks] for case in ranks[0][key]}
    return outcomes


def run_rank(
    worker: Worker, subjects: Sequence[Subject], settings: Sequence[Setting], folder: Path
) -> None:
    """Runs one rank's side of every case and leaves the results in ``<rank>.pkl``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {}
    try:
        for subject in subjects:
            for setting in settings:
                place = folder / subject.name / setting.precision
                lab = Lab(subject.config, setting, worker, place)
                results[subject.name, setting] = {
                    name: case(lab)
                    for name, case in CASES.items()
                    if setting == FP32 or name in BF16_CASES
                }
    finally:
        torch.set_num_threads(threads)
    (folder / f"{worker.rank}.pkl").write_bytes(pickle.dumps(results))


def _in_group(rank: int, workers: int, *arguments: Any) -> None:
    folder: Path = arguments[-1]
    store = dist.FileStore(str(folder / "store"), workers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers)
    try:
        run_rank(GroupWorker(), *arguments)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        dist.destroy_process_group()
