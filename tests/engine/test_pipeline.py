"""What is a pipeline's own: generators, ties, frozen stages, memory, checkpoints, fp16."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.base import build
from orchestrator.config.engines import (
    DeepSpeedEngineConfig,
    PipelineEngineConfig,
    PlainEngineConfig,
)
from orchestrator.config.optimizers import AdamW, Sgd
from orchestrator.config.training import (
    ClassifyTask,
    DistillTask,
    LanguageModelTask,
    SequenceToSequenceTask,
    TrainConfig,
)
from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.pipeline_worker import PipelineWorker
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.host import SingleWorker
from orchestrator.models.stages import Stage, run_stages
from orchestrator.tasks.classify import Classify
from orchestrator.tasks.distill import TEACHER, Distill
from orchestrator.tasks.language_model import LanguageModel
from orchestrator.tasks.sequence_to_sequence import SequenceToSequence
from tests.groups import in_group
from tests.zoo.small import VOCABULARY
from tests.zoo.small import build as build_model

PIPELINE = PipelineEngineConfig(balance="parameters")
CLASSIFY = Classify(ClassifyTask())


class Net(nn.Module):
    """Linear layers that all drop, with whole numbers, an unused float and a float for the head."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.dropout = dropout
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return run_stages(self.stages(), x)

    def stages(self) -> list[Stage]:
        first = Stage("stem", lambda x: (x, x.argmax(1), x * 0, x * 2), ())
        layers = [
            Stage(f"layers.{n}", functools.partial(self._layer, n), (layer,))
            for n, layer in enumerate(self.layers)
        ]
        return [first, *layers, Stage("head", self._head, (self.head,))]

    def _layer(self, number: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, places, zero, twice = state
        y = self.layers[number](nn.functional.dropout(x, self.dropout, self.training)).relu()
        return y + nn.functional.one_hot(places, 6), places, zero, twice * 1.5

    def _head(self, state: tuple[Tensor, ...]) -> Tensor:
        return self.head(state[0] + state[3])


def vectors(sizes=(5, 4, 5)):
    random = torch.Generator().manual_seed(2)
    for index, size in enumerate(sizes):
        x = torch.randn(size, 6, generator=random)
        label = torch.randint(4, (size,), generator=random)
        targets = {"label": label, TEACHER: torch.randn(size, 4, generator=random)}
        cuts = torch.arange(size).tensor_split(3)
        micro = [Batch(i, {"x": x[i]}, {k: t[i] for k, t in targets.items()}) for i in cuts]
        yield GlobalBatch(0, index, size, tuple(micro), (0, 1, 2))


def texts(*, pairs: bool):
    random = torch.Generator().manual_seed(3)
    for index in range(3):
        tokens, target, label = (
            torch.randint(1, VOCABULARY, (5, 7), generator=random) for _ in range(3)
        )
        label[0, 3:] = 0
        cuts = torch.arange(5).tensor_split(2)
        micro = [
            Batch(
                i,
                {"tokens": tokens[i], **({"target_tokens": target[i]} if pairs else {})},
                {"label": label[i]},
            )
            for i in cuts
        ]
        yield GlobalBatch(0, index, 5, tuple(micro), (0, 1))


def train(config, worker, model, task, data, optimizer=None, **settings):
    """Losses, metrics and the state after them; then outputs in evaluation."""
    given = {"precision": "fp32", "memory_format": "contiguous", "clip_norm": 0.3} | settings
    engine = build(
        "engine",
        config,
        model=model,
        optimizer=optimizer or Sgd(lr=0.1, momentum=0.9),
        train=TrainConfig(**given),
        seed=3,
        worker=worker,
    )
    steps = [engine.train_step(task, batch, 0.1) for batch in data]
    found = {
        "losses": [step.loss.item() for step in steps],
        "metrics": {name: float(value) for name, value in steps[-1].metrics.items()},
        "state": engine.model_state(),
        "answers": engine.evaluate_step(task, data[0].micro_batches[0]).outputs,
    }
    engine.close()
    return found


def language_model(tied):
    torch.manual_seed(0)
    options = {"dim": 8, "depth": 2, "heads": 2, "tied": tied, "per_token": True}
    return build_model("transformer_decoder", classes=VOCABULARY, size=7, **options)


def translator():
    torch.manual_seed(0)
    options = {"dim": 8, "depth": 1, "heads": 2, "per_token": True}
    return build_model("transformer", classes=VOCABULARY, size=(7, 7), **options)


def frozen(*names):
    model = Net()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(not key.startswith(names))
    return model


CASES = {
    "all stages drop": lambda: (Net(), CLASSIFY, vectors()),
    "fewer samples than micro-batches": lambda: (Net(), CLASSIFY, vectors((5, 2, 5))),
    "distillation": lambda: (Net(), Distill(DistillTask(teacher="x")), vectors()),
    "the first rank is frozen": lambda: (
        frozen("layers.0", "layers.1", "layers.2"),
        CLASSIFY,
        vectors(),
    ),
    "the last rank is frozen": lambda: (frozen("layers.3", "head"), CLASSIFY, vectors()),
    "ranks whose parameters are not decayed alike": lambda: (
        frozen("layers.0.weight", "layers.1.weight"),
        CLASSIFY,
        vectors(),
    ),
    "the embedding is the head": lambda: (
        language_model(True),
        LanguageModel(LanguageModelTask()),
        texts(pairs=False),
    ),
    "the head is its own": lambda: (
        language_model(False),
        LanguageModel(LanguageModelTask()),
        texts(pairs=False),
    ),
    "two inputs and a tied head": lambda: (
        translator(),
        SequenceToSequence(SequenceToSequenceTask(bleu=False)),
        texts(pairs=True),
    ),
}
ENGINES = {
    "stage 0": PIPELINE,
    "stage 1": PipelineEngineConfig(balance="parameters", zero_stage=1),
}


def run_case(config, worker, name):
    model, task, data = CASES[name]()
    optimizer = AdamW(weight_decay=0.1) if "decayed" in name else None
    return train(config, worker, model, task, list(data), optimizer)


def every_case(worker):
    return {(n, e): run_case(ENGINES[e], worker, n) for n in CASES for e in ENGINES}


@functools.cache
def piped():
    return in_group(2, every_case)


@functools.cache
def alone(name):
    return run_case(PlainEngineConfig(), SingleWorker(), name)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_do_what_one_process_does(name, engine):
    expected = alone(name)
    for rank in piped():
        found = rank[name, engine]
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
        torch.testing.assert_close(found["answers"], expected["answers"], rtol=1e-4, atol=1e-5)
    state = piped()[0][name, engine]["state"]
    assert list(state) == list(expected["state"])
    for key, value in expected["state"].items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert piped()[1][name, engine]["state"] == {}


def test_the_cases_do_drop():
    calm = train(PlainEngineConfig(), SingleWorker(), Net(0), CLASSIFY, list(vectors()))
    assert calm["losses"] != pytest.approx(alone("all stages drop")["losses"], rel=1e-3)


def shares(worker, sizes):
    """What one of several pipelines side by side has of each batch: at times no sample at all."""
    view = PipelineWorker(worker, 2)
    for batch in vectors(sizes):
        mine = range(view.rank, 3, view.world_size)
        micro = tuple(batch.micro_batches[number] for number in mine)
        yield GlobalBatch(0, batch.index, batch.samples, micro, tuple(mine))


def copied(worker):
    """Two pipelines side by side."""
    data = list(shares(worker, (5, 1, 5)))
    return {name: train(one, worker, Net(), CLASSIFY, data) for name, one in ENGINES.items()}


def test_copies_of_a_pipeline_share_the_step():
    ranks = in_group(4, copied)
    expected = train(PlainEngineConfig(), SingleWorker(), Net(), CLASSIFY, list(vectors((5, 1, 5))))
    for engine in ENGINES:
        losses = torch.tensor([rank[engine]["losses"] for rank in ranks]).mean(0)
        torch.testing.assert_close(losses, torch.tensor(expected["losses"]), rtol=1e-5, atol=1e-6)
        state = ranks[0][engine]["state"]
        for key, value in expected["state"].items():
            torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-6, msg=key)


# --- memory, checkpoints, fp16 ---------------------------------------------------------------


def lifecycle(worker, folder):
    """What a rank holds, what it refuses to load, and what is left of it when it is closed."""
    settings = {"precision": "fp32", "memory_format": "contiguous"}

    def made(config):
        return build(
            "engine",
            config,
            model=Net(),
            optimizer=AdamW(),
            train=TrainConfig(**settings),
            seed=3,
            worker=worker,
        )

    engine = made(PipelineEngineConfig(cut=(2, 4)))
    holds = {name for name, p in engine.model.named_parameters() if not p.is_meta}
    engine.train_step(CLASSIFY, next(vectors()), 0.1)
    engine.save(Path(folder))
    engine.close()
    left = {name for name in ("LOCAL_RANK",) if name in os.environ}
    other = made(PipelineEngineConfig(cut=(3, 3)))
    with pytest.raises(CheckpointError) as refusal:
        other.load(Path(folder))
    other.close()
    plain = made(DeepSpeedEngineConfig())  # a warm process goes on with another engine
    plain.train_step(CLASSIFY, next(vectors()), 0.1)
    plain.close()
    return holds, left, str(refusal.value)


def test_a_rank_holds_its_stages_and_leaves_nothing_behind():
    with tempfile.TemporaryDirectory() as folder:
        first, last = in_group(2, lifecycle, folder)
    assert {name.rpartition(".")[0] for name in first[0]} == {"layers.0"}
    assert {name.rpartition(".")[0] for name in last[0]} == {
        "layers.1",
        "layers.2",
        "layers.3",
        "head",
    }
    for _, left, refusal in (first, last):
        assert left == set()
        assert "cut [2, 4] and 1 copies, but this is one of cut [3, 3] and 1 copies" in refusal


HALF = {"precision": "fp16", "clip_norm": 1.0}


def half_precision(config, worker, batch):
    """Losses of steps of which the first overflow, until the loss scale is small enough."""
    return train(config, worker, Net(0), CLASSIFY, [batch] * 30, AdamW(), **HALF)["losses"]


def half_precisions(worker):
    batch = next(shares(worker, (5,)))
    return {name: half_precision(config, worker, batch) for name, config in ENGINES.items()}


def taken(losses, count=20):
    """Losses from the last of the first steps that are skipped: how many are, weights decide."""
    skipped = int((losses == losses[0]).cumprod(0).sum())
    assert skipped > 1
    return losses[skipped - 1 :][:count]


@pytest.mark.slow
def test_fp16_learns_and_its_ranks_skip_the_same_steps():
    ranks = in_group(4, half_precisions)
    expected = half_precision(PlainEngineConfig(), SingleWorker(), next(vectors((5,))))
    expected = taken(torch.tensor(expected))
    assert expected[-1] < 0.9 * expected[0]
    for name in ENGINES:
        losses = torch.tensor([rank[name] for rank in ranks])
        assert torch.equal(losses[:2], losses[2:])  # both stages of a pipeline say the same
        # A step that overflows on any rank changes no weight on any other.
        torch.testing.assert_close(taken(losses.mean(0)), expected, rtol=0.02, atol=0.01)


# --- who reads what --------------------------------------------------------------------------


def places(worker):
    view = PipelineWorker(worker, 2)
    total = view.sum(torch.tensor([10.0**view.rank]))
    found = view.rank, view.world_size, view.is_main, float(total), view.gather(worker.rank)
    with pytest.raises(ConfigError) as refusal:
        PipelineWorker(worker, 3)
    return *found, str(refusal.value)


def test_the_ranks_of_a_pipeline_count_once():
    ranks = in_group(4, places)
    assert [rank[:5] for rank in ranks] == [
        (0, 2, True, 11.0, [0, 1]),
        (1, 2, False, 11.0, None),
        (0, 2, False, 11.0, None),
        (1, 2, False, 11.0, None),
    ]
    assert "stages=3, workers=4; set scale.workers to a multiple of 3" in ranks[0][5]
