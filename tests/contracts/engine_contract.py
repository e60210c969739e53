"""The conformance suite of engines. A new engine is tested by inheriting `EngineContract`.

class TestMine(EngineContract):
    subjects = (Subject("mine", MineConfig(), workers=2),)
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from orchestrator.config.base import Part
from orchestrator.config.engines import PlainEngineConfig, copies
from orchestrator.data.text.tokenizer import PAD
from orchestrator.engine.pipeline_worker import reader
from orchestrator.engine.shared import autocast
from orchestrator.host import SingleWorker, Worker
from tests.contracts.engine_cases import CASES, Lab, Setting
from tests.contracts.nets import CLIP, LR, SAMPLES, Net, RidgeNet, TokenNet, batches, texts
from tests.groups import freeze, in_group

FP32 = Setting("fp32", "contiguous")
BF16 = Setting("bf16", "channels_last")


@dataclass(frozen=True)
class Subject:
    """An engine to be tested, on so many processes."""

    name: str
    config: Part = field(hash=False)  # a raw block is a dict
    workers: int = 1


REFERENCE = Subject("plain", PlainEngineConfig())
BF16_CASES = ("parity", "resumption", "evaluation", "averaging")
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
        ranks = [rank for rank in outcome["statistics"] if len(rank["own"])]
        own = torch.stack([rank["own"] for rank in ranks])
        for rank in ranks:
            torch.testing.assert_close(rank["averaged"], own.mean(0))
        torch.testing.assert_close(ranks[0]["exported"], own.mean(0))
        assert len(own) == copies(subject.config, subject.workers)
        if len(own) > 1:
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

    def test_every_real_token_counts_alike(self, outcome: Outcome) -> None:
        expected_losses, expected = plain_steps_over_tokens()
        for cut in outcome["tokens"][0]:
            losses = torch.tensor([rank[cut][0] for rank in outcome["tokens"]])
            torch.testing.assert_close(losses.mean(0), expected_losses, rtol=1e-5, atol=1e-6)
            for name, value in expected.items():
                found = outcome["tokens"][0][cut][1][name]
                torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6)

    @also_in_bf16
    def test_averages_the_weights(
        self, outcome: Outcome, setting: Setting, subject: Subject
    ) -> None:
        main = outcome["averaging"][0]
        average = main["path"][0]
        for number, weights in enumerate(main["path"][1:], start=1):
            decay = min(0.6, (1 + number) / (10 + number))
            average = {
                name: decay * value.double() + (1 - decay) * weights[name].double()
                for name, value in average.items()
            }
            if number == 3:
                compare_parameters(main["middle"], average)
        compare_parameters(main["average"], average)
        if subject.workers == 1:
            bare = Net().eval()
            bare.load_state_dict(main["middle"])
            batch = list(batches(SingleWorker()))[2].micro_batches[0]
            with torch.no_grad(), autocast(torch.device("cpu"), setting.precision):
                seen = bare(batch.inputs["image"])
            tolerance = 1e-5 if setting == FP32 else 0.02
            torch.testing.assert_close(main["seen"], seen, rtol=tolerance, atol=tolerance)

    @also_in_bf16
    def test_looking_at_the_average_changes_nothing(
        self, outcome: Outcome, reference: Outcome, setting: Setting
    ) -> None:
        losses = torch.tensor([rank["steps"] for rank in outcome["averaging"]]).mean(0)
        plain = torch.tensor(reference["averaging"][0]["steps"])
        tolerance = 1e-5 if setting == FP32 else 0.02
        torch.testing.assert_close(losses, plain, rtol=tolerance, atol=tolerance)
        for rank in outcome["averaging"]:
            assert rank["again"] == rank["steps"][3:]
            assert_same(rank["resumed"], rank["average"])
            assert_same(rank["restored"], rank["middle"])

    def test_unfrozen_parameters_learn(self, outcome: Outcome, reference: Outcome) -> None:
        main, plain = outcome["unfreezing"][0], reference["unfreezing"][0]
        for name in ("first.weight", "first.bias"):
            assert torch.equal(main["begun"][name], main["frozen"][name])
            assert not torch.equal(main["frozen"][name], main["free"][name])
        losses = torch.tensor([rank["losses"] for rank in outcome["unfreezing"]]).mean(0)
        torch.testing.assert_close(losses, torch.tensor(plain["losses"]), rtol=1e-3, atol=1e-4)

    def test_resumes_in_any_phase_to_the_bit(self, outcome: Outcome) -> None:
        ranks = outcome["unfreezing"]
        for key, start in (("from_early", 2), ("from_late", 4)):
            for rank in ranks:
                assert rank[key][0] == rank["losses"][start:]
            # Other ranks' counts of batches are not kept.
            assert_same(ranks[0][key][1], ranks[0]["free"])

    def test_recomputed_activations_change_no_loss(self, outcome: Outcome) -> None:
        for rank in outcome["recomputation"]:
            assert rank[True] == pytest.approx(rank[False], rel=1e-5)

    def test_groups_step_at_their_own_rate(self, outcome: Outcome) -> None:
        moved = outcome["scales"][0]
        for name, change in moved["same"].items():
            scale = 0.5 if name.startswith("head") else 1.0
            torch.testing.assert_close(moved["own"][name], scale * change, rtol=1e-3, atol=1e-7)

    def test_a_layers_penalty_counts_once_a_step(self, outcome: Outcome) -> None:
        ranks = outcome["penalties"]
        if "refused" in ranks[0]:
            assert "RidgeNet's Ridge" in ranks[0]["refused"]
            return
        expected_losses, expected = plain_steps_with_penalty()
        for cut in ranks[0]:
            losses = torch.tensor([rank[cut][0] for rank in ranks])
            torch.testing.assert_close(losses.mean(0), expected_losses, rtol=1e-5, atol=1e-6)
            for name, value in expected.items():
                torch.testing.assert_close(ranks[0][cut][1][name], value, rtol=1e-5, atol=1e-6)

    def test_heads_that_speak_in_training_learn_beside_an_empty_micro_batch(
        self, outcome: Outcome, reference: Outcome
    ) -> None:
        mine, plain = outcome["auxiliaries"], reference["auxiliaries"]
        torch.testing.assert_close(global_losses(mine), global_losses(plain), rtol=1e-5, atol=1e-6)
        compare_parameters(mine[0]["state"], plain[0]["state"])
        assert sum(rank["seen"] for rank in mine) == 3 + 4, "real micro-batches only"

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
    """Each global batch's loss, from every rank's part."""
    return torch.tensor([rank["steps"] for rank in ranks], dtype=torch.float64).mean(0)


def plain_steps_over_tokens() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses and weights of SGD on the mean over all real tokens of each whole batch."""
    model, losses = TokenNet(), []
    for batch in texts(SingleWorker(), count=1):
        (whole,) = batch.micro_batches
        real = whole.targets["label"] != PAD
        loss = nll(model(whole.inputs["tokens"])[real], whole.targets["label"][real])
        losses.append(loss.detach())
        descend(model, loss)
    return torch.stack(losses), model.state_dict()


def plain_steps_with_penalty() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(Loss, penalty) and weights of SGD on the mean over each whole batch plus the penalty."""
    model, losses = RidgeNet(), []
    for batch in batches(SingleWorker(), count=1, sizes=(16, 7)):
        (whole,) = batch.micro_batches
        penalty = model.head.weight.square().sum() / 2 / SAMPLES
        loss = nll(model(whole.inputs["image"]), whole.targets["label"]) + penalty
        losses.append(torch.stack([loss, penalty]).detach())
        descend(model, loss)
    return torch.stack(losses), model.state_dict()


def nll(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The mean of −log p."""
    return -logits.log_softmax(-1)[torch.arange(len(label)), label].sum() / len(label)


def descend(model: torch.nn.Module, loss: torch.Tensor) -> None:
    """One step of SGD."""
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= LR * gradient


def compare_parameters(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Near each other, name by name; ranks' running statistics differ from one process's."""
    for name, value in wanted.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(found[name].double(), value.double(), rtol=1e-5, atol=1e-6)


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
            given = (chosen, settings, Path(folder))
            alone = workers == 1
            ranks = (
                [run_rank(SingleWorker(), *given)] if alone else in_group(workers, run_rank, *given)
            )
        for key in ranks[0]:
            outcomes[key] = {case: [rank[key][case] for rank in ranks] for case in ranks[0][key]}
    return outcomes


def run_rank(
    worker: Worker, subjects: Sequence[Subject], settings: Sequence[Setting], folder: Path
) -> dict[tuple[str, Setting], dict[str, Any]]:
    """One rank's side of every case, computed by one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {}
    try:
        for subject in subjects:
            freeze()
            view = reader(subject.config, worker)
            for setting in settings:
                place = folder / subject.name / setting.precision
                lab = Lab(subject.config, setting, worker, view, place)
                results[subject.name, setting] = {
                    name: case(lab)
                    for name, case in CASES.items()
                    if setting == FP32 or name in BF16_CASES
                }
    finally:
        torch.set_num_threads(threads)
    return results
