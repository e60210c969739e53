"""The pieces of a pipeline that need no group: cuts, and what travels between ranks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.config.training import ClassifyTask, SequenceToSequenceTask
from orchestrator.data.types import Batch
from orchestrator.engine.pipeline_cut import (
    balanced,
    check_stages,
    check_task,
    parameter_counts,
    stage_input,
    stage_seconds,
)
from orchestrator.engine.pipeline_parcel import pack, unpack
from orchestrator.engine.pipeline_share import chunks, joined
from orchestrator.engine.shared import blank
from orchestrator.errors import ConfigError, UserError
from orchestrator.models.stages import Stage
from orchestrator.tasks.classify import Classify
from orchestrator.tasks.sequence_to_sequence import SequenceToSequence
from tests.zoo.small import slim


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_no_other_cut_has_a_smaller_largest_part(parts):
    costs = [3, 1, 4, 1, 5, 9, 2, 6]

    def largest(cut):
        ends = [0, *itertools.accumulate(cut)]
        return max(sum(costs[a:b]) for a, b in itertools.pairwise(ends))

    every = [
        tuple(b - a for a, b in itertools.pairwise((0, *inner, len(costs))))
        for inner in itertools.combinations(range(1, len(costs)), parts - 1)
    ]
    found = balanced(costs, parts)
    assert found in every
    assert largest(found) == min(map(largest, every))


def test_every_part_has_a_stage_even_if_it_costs_nothing():
    assert balanced([0, 0, 7], 3) == (1, 1, 1)
    assert min(balanced([9, 0, 0, 0], 3)) == 1


def test_counts_a_shared_parameter_once():
    model = slim("transformer_decoder")
    assert sum(parameter_counts(model.stages())) == sum(p.numel() for p in model.parameters())
    layer = nn.Linear(3, 3, bias=False)
    stages = [Stage("a", layer, (layer,)), Stage("b", layer, (layer,))]
    assert parameter_counts(stages) == [9, 0]


def test_measures_what_takes_long():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large = nn.Linear(64, 64), nn.Linear(64, 64)

        def stages(self):
            return [
                Stage("small", self.small, (self.small,)),
                Stage("large", self._large, (self.large,)),
            ]

        def _large(self, x):
            for _ in range(200):
                x = self.large(x).relu_()
            return x

    model = Net()
    small, large = stage_seconds(model, {"x": torch.randn(8, 64)})
    assert 0 < small < large
    assert all(parameter.grad is None for parameter in model.parameters())


class Short(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.free = nn.Linear(2, 2), nn.Linear(2, 2)

    def stages(self):
        return [Stage("a", self.layer, (self.layer,)), Stage("b", torch.relu, ())]


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (nn.Linear(2, 2), {}, "Linear has no `stages` method"),
        (Short(), {"stages": 3}, "got 3 and Short has 2; lower engine.stages"),
        (Short(), {"cut": (1, 2)}, "the model's 2 stages, but [1, 2] is 3"),
        (Short(), {}, "no stage of Short has free.weight, free.bias"),
    ],
)
def test_refuses_models_that_can_not_be_cut(model, config, said):
    with pytest.raises(ConfigError) as caught:
        check_stages(PipelineEngineConfig(**config), model)
    assert said in str(caught.value)


def test_refuses_tasks_with_a_forward_pass_of_their_own():
    check_task(Classify(ClassifyTask()))
    check_task(SequenceToSequence(SequenceToSequenceTask(bleu=False)))
    with pytest.raises(ConfigError, match="SequenceToSequence has one of its own"):
        check_task(SequenceToSequence(SequenceToSequenceTask()))


# --- parcels ---------------------------------------------------------------------------------

STATES = {
    "one": torch.randn(2, 3),
    "half": torch.randn(2, 3, 4, 4).bfloat16(),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "transposed": torch.randn(2, 3, 4).transpose(1, 2),
    "tokens ride along": (torch.randn(2, 3, 4), torch.arange(7), torch.tensor([True, False])),
    "several dtypes": (torch.randn(3), torch.randn(2, 2).bfloat16(), torch.randn(1).double()),
    "a tuple of one": (torch.randn(2),),
    "no floats": (torch.arange(3, dtype=torch.int32), torch.arange(5).byte()),
    "nothing in it": (torch.randn(0, 3), torch.randn(2, 2)),
}


@pytest.mark.parametrize("name", STATES)
def test_what_is_unpacked_is_what_was_packed(name):
    state = STATES[name]
    payload, notes = pack(state, draws=False)
    assert payload.is_contiguous() and payload.is_floating_point() and payload.ndim == 1
    assert notes.dtype == torch.uint8
    again = unpack((payload.clone(), notes.clone()))
    assert isinstance(again, tuple) == isinstance(state, tuple)
    first, second = (one if isinstance(one, tuple) else (one,) for one in (state, again))
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    if name == "channels last":
        assert again.is_contiguous(memory_format=torch.channels_last)


def test_gradients_go_back_through_a_parcel():
    x = torch.randn(2, 3, requires_grad=True)
    y = torch.randn(4).bfloat16().requires_grad_()
    payload, notes = pack((x * 2, torch.arange(3), y * 3), draws=False)
    entry = payload.detach().requires_grad_()
    a, whole, b = unpack((entry, notes))
    a.relu_()  # a stage may write to what it is given
    (a.square().sum() + b.float().sum() * whole.sum()).backward()
    payload.backward(entry.grad)
    assert torch.equal(x.grad, 8 * x * (x > 0))
    assert torch.equal(y.grad, torch.full_like(y, 9))


def test_random_numbers_go_on_where_the_sender_stopped():
    torch.manual_seed(5)
    torch.rand(3)
    parcel = pack(torch.ones(1), draws=True)
    expected = torch.rand(4)
    torch.manual_seed(1)
    unpack(parcel)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    unpack(pack(torch.ones(1), draws=False))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("state", [(torch.ones(1), [1]), {"a": 1}, torch.ones(1).cfloat()])
def test_refuses_what_is_no_flat_tuple_of_tensors(state):
    with pytest.raises(UserError, match="between the stages of a model there must be tensors"):
        pack(state, draws=False)


# --- batches ---------------------------------------------------------------------------------


def batch(size):
    return Batch(torch.arange(size), {"x": torch.randn(size, 2)}, {"label": torch.arange(size)})


@pytest.mark.parametrize(("size", "most", "sizes"), [(7, 3, [2, 2, 3]), (2, 4, [1, 1])])
def test_a_batch_is_cut_without_empty_parts(size, most, sizes):
    whole = batch(size)
    parts = chunks(whole, most)
    assert list(map(len, parts)) == sizes
    assert torch.equal(torch.cat([part.ids for part in parts]), whole.ids)
    assert torch.equal(joined([part.inputs["x"] for part in parts], size), whole.inputs["x"])


def test_an_empty_batch_goes_through_as_zeros():
    made = blank(batch(0), 2)
    assert torch.equal(made.inputs["x"], torch.zeros(2, 2))
    assert made.targets == {}


def test_several_inputs_go_in_the_order_of_forward():
    class Net(nn.Module):
        def forward(self, tokens, target_tokens):
            return tokens

    one, two = torch.ones(1), torch.zeros(1)
    found = stage_input(Net(), {"target_tokens": two, "tokens": one})
    assert found[0] is one and found[1] is two
    with pytest.raises(UserError, match="takes tokens, target_tokens, but the data also has image"):
        stage_input(Net(), {"tokens": one, "image": two})
