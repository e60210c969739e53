"""The plan's figures against real tensors, against formulas, and what it chooses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from benchmarks.memory_plan import described, experiment, measured, planned, share
from orchestrator.config.base import build
from orchestrator.config.load import derive
from orchestrator.config.optimizers import Adagrad, AdamW, NAdam, Sgd
from orchestrator.config.training import ClassifyTask
from orchestrator.engine.shared import autocast
from orchestrator.errors import ResourceError, UserError
from orchestrator.host import SingleWorker
from orchestrator.networks import build_network
from orchestrator.plan import engine as auto_engine
from orchestrator.plan import machine
from orchestrator.plan.footprint import Load, plain, zero
from orchestrator.plan.machine import Room
from orchestrator.plan.memory_plan import MemoryPlanner, scaled
from orchestrator.plan.network import Appetite, NetworkFacts, measure_appetite
from orchestrator.plan.profile import Moment, StepProfile
from orchestrator.plan.report import report
from orchestrator.plan.tracker import StorageTracker

CPU = torch.device("cpu")
MIB = 2**20


def planner(name="resnet18", precision="fp32", workers=1, room=2**40, **changes):
    config = experiment(name, precision, None, workers, 1)
    config = derive(config, changes) if changes else config
    info = described(name)
    task = build("task", config.task)
    return MemoryPlanner(config, task=task, info=info, device=CPU, room=Room(room, 1, "a test"))


# --- counting ------------------------------------------------------------------------------


def test_the_tracker_counts_storages_while_they_live():
    with StorageTracker() as tracker:
        a = torch.zeros(256)
        assert tracker.live == 1024
        view, b = a.view(16, 16).t(), a + 1
        assert tracker.live == 2048
        del a
        assert tracker.live == 2048  # the view holds it
        del view
        assert (tracker.live, tracker.peak) == (1024, 2048)
        assert tracker.restart_peak() == 2048
        b.untyped_storage().resize_(2048)
        b.set_(b.untyped_storage(), 0, (512,))
        assert (tracker.live, tracker.peak) == (2048, 2048)
        torch.empty(1000, device="meta")
        assert tracker.peak == 2048


def saved_bytes(name, precision):
    """What a real forward pass leaves, its answer included, without parameters."""
    config, info = experiment(name, precision, None, 1, 1), described(name)
    task = build("task", config.task)
    network = build_network(
        config.model,
        outputs=task.outputs(info),
        shape=info.shape,
        vocabulary=info.vocabulary,
        per_token=task.per_token,
    ).train()
    batch = share(info, SingleWorker(), 1).micro_batches[0]
    given = [*batch.inputs.values(), *batch.targets.values()]
    given += [*network.parameters(), *network.buffers()]
    known = {id(one.untyped_storage()) for one in given}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            saved[id(storage)] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, autocast(CPU, precision):
        output = task.loss(task.forward(network, batch), batch)
    pack(output.outputs)  # which a step gives back
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16", "gru", "transformer_decoder"])
def test_activations_are_what_autograd_saves(name, precision):
    plan = planner(name, precision, **{"train.memory_format": "contiguous"})
    kept = plan.profile(plan.micro_batch).kept
    assert kept == pytest.approx(saved_bytes(name, precision), rel=0.01)


@pytest.mark.parametrize(("name", "precision"), [("resnet18", "fp32"), ("gru", "bf16")])
def test_the_peak_is_that_of_a_real_step(name, precision):
    config, info = experiment(name, precision, None, 1, 1), described(name)
    real = measured(config, info, SingleWorker(), 1)
    assert planned(config, info, None) == pytest.approx(real, rel=0.02)


def test_activations_grow_with_the_micro_batch():
    plan = planner()
    small, large = plan.profile(4), plan.profile(16)
    assert large.kept == pytest.approx(4 * small.kept, rel=0.01)
    assert large.flops == 4 * small.flops
    assert scaled(large, 4).kept <= small.kept


def test_flops_are_those_of_the_formula():
    class Net(nn.Linear):
        def __init__(self, classes):
            super().__init__(28 * 28, classes)

        def forward(self, x):
            return super().forward(x.flatten(1))

    import sys

    module = type(sys)("one_layer")
    module.Net = Net
    sys.modules["one_layer"] = module
    plan = planner(model={"type": "import", "target": "one_layer:Net", "args": {"classes": 10}})
    # Forward, and backward to the weights only: the images need no gradient.
    assert plan.profile(16).flops == 2 * (2 * 16 * 784 * 10)


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [(Sgd(), 1), (Sgd(momentum=0), 0), (AdamW(), 2), (NAdam(), 2), (Adagrad(), 1)],
    ids=str,
)
def test_an_optimizers_state(optimizer, state):
    assert measure_appetite(optimizer, CPU).state == state


# --- formulas ------------------------------------------------------------------------------

FACTS = NetworkFacts(
    parameters=(1000, 3000, 4000),
    groups=((0, 1, 2),),
    frozen_bytes=500,
    buffer_bytes=100,
    rearranged_bytes=0,
    appetite=Appetite(state=2.0, update=0.0, at_once=False),
)
P = 32_000
"""Bytes of the trainable parameters."""
PROFILE = StepProfile(
    micro_batch=8,
    samples=64,
    kept=9000,
    forward=10_000,
    moments=(Moment(2, 24_000, 6000), Moment(1, 16_000, 3000), Moment(0, 5000, 0)),
    answers=700,
    flops=1,
)


def test_one_process():
    found = plain(FACTS, PROFILE, Load(workers=1, micro_batches=1))
    assert (found.parameters, found.gradients, found.optimizer) == (P + 600, P, 2 * P)
    # Gradients of 16,000, 12,000 and 4,000 bytes come while activations go.
    working = max(10_000, 24_000, 16_000 + 16_000, 28_000 + 5000, P)
    assert found.peak == 3 * P + 600 + 64 + working


def test_accumulated_gradients_lie_beside_the_next_activations():
    found = plain(FACTS, PROFILE, Load(workers=1, micro_batches=2))
    # And so do the answers to the micro-batch before.
    assert found.peak == 3 * P + 600 + 2 * 64 + P + 24_000 + 700


def test_data_parallel_ranks_hold_every_gradient_twice():
    alone, pair = (plain(FACTS, PROFILE, Load(workers, 1)) for workers in (1, 2))
    assert pair.communication == P
    assert pair.peak == alone.peak + P


def test_zero_shards_optimizer_then_gradients_then_parameters():
    load = Load(workers=4, micro_batches=1)
    one, two, three = (zero(s, FACTS, PROFILE, load, persist_below=0) for s in (1, 2, 3))
    assert one.optimizer == two.optimizer == three.optimizer == 2 * P // 4
    # Below stage 3 the weights are whole, and the shard is there once more.
    assert one.parameters == two.parameters == P + P // 4 + 600
    assert three.parameters == 2 * P // 4 + 600
    assert (one.gradients, three.gradients) == (P, P // 4)
    assert P // 4 <= two.gradients <= P // 4 + 16_000


def test_an_average_of_the_weights_is_one_more_copy():
    without, with_it = (
        plain(FACTS, PROFILE, Load(1, 1, averaged=averaged)) for averaged in (False, True)
    )
    assert with_it.peak - without.peak == P + 100


# --- choosing ------------------------------------------------------------------------------


def peaks(plan, micro_batch):
    profile = plan.profile(micro_batch)
    return {stage: plan.footprint(stage, profile).peak for stage in (None, 1, 2, 3)}


def roomy(plan, peak):
    """The same plan where just so much fits."""
    plan.room = replace(plan.room, total=int(peak / (1 - machine.SPARE)) + 16)
    return plan


def test_the_plain_engine_while_it_fits():
    plan = planner(workers=2)
    choice = roomy(plan, peaks(plan, 16)[None]).choose()
    assert (choice.zero_stage, choice.micro_batch, choice.accumulation) == (None, 16, 1)
    assert choice.changes == {"train.micro_batch": 16, "engine.type": "plain"}


def test_then_the_first_stage_that_fits():
    plan = planner(workers=2)
    most = peaks(plan, 16)
    below = min(most.values())
    expected = next(stage for stage in (1, 2, 3) if most[stage] == below)
    assert below < most[None]
    choice = roomy(plan, below).choose()
    assert (choice.zero_stage, choice.micro_batch) == (expected, 16)
    assert "would take" in choice.why


def test_then_half_the_micro_batch():
    plan = planner()
    at = {size: plan.footprint(None, plan.profile(size)).peak for size in (16, 8, 4)}
    assert at[16] > at[8] > at[4]
    choice = roomy(plan, at[4]).choose()
    assert (choice.zero_stage, choice.micro_batch, choice.accumulation) == (None, 4, 4)
    assert choice.micro_batch * choice.accumulation == plan.config.train.batch_size


def test_a_batch_that_workers_do_not_divide_gives_a_file_that_holds():
    plan = planner(workers=2, **{"train.batch_size": 17, "train.micro_batch": "auto"})
    choice = plan.choose()
    assert (choice.micro_batch, choice.accumulation) == (9, 1)
    assert derive(plan.config, choice.changes).train.micro_batch == 9


def test_nothing_fits():
    plan = planner(room=MIB)
    with pytest.raises(ResourceError, match="even one sample a forward pass takes at least"):
        plan.choose()
    assert report(plan).choice == {}


def test_an_optimizer_that_needs_whole_tensors_is_not_sharded():
    plan = planner(workers=2, **{"optimizer.type": "adagrad"})
    choice = roomy(plan, plan.footprint(None, plan.profile(4)).peak).choose()
    assert (choice.zero_stage, choice.micro_batch) == (None, 4)


def test_auto_becomes_what_fits_and_is_adopted_by_a_resumed_run(monkeypatch):
    config = derive(experiment("resnet18", "fp32", None, 1, 1), {"engine.type": "auto"})
    info, task = described("resnet18"), build("task", ClassifyTask())
    resolved, choice = auto_engine.choose_engine(
        config, task=task, info=info, worker=SingleWorker()
    )
    assert resolved.engine.type == "plain"
    assert resolved.train.micro_batch == choice.micro_batch == 16
    assert auto_engine.adopt_engine(config, resolved).engine == resolved.engine
    assert not auto_engine.is_open(resolved)


def test_a_network_that_needs_numbers_is_a_users_error():
    class Net(nn.Linear):
        def forward(self, x):
            return super().forward(x.flatten(1)) if x.sum().item() else x

    import sys

    module = type(sys)("needs_numbers")
    module.Net = Net
    sys.modules["needs_numbers"] = module
    arguments = {"in_features": 784, "out_features": 10}
    plan = planner(model={"type": "import", "target": "needs_numbers:Net", "args": arguments})
    with pytest.raises(UserError, match="does not run without numbers"):
        plan.profile(2)


# --- the machine ---------------------------------------------------------------------------


def test_a_control_groups_limit(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert machine._left_in(tmp_path) == 450  # a cache is given back
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._left_in(tmp_path) is None


def test_room_is_shared_by_the_workers_of_a_node():
    one, two = machine.room_for(CPU, 1), machine.room_for(CPU, 2)
    assert 0 < two.each < one.each / 2 + MIB * 64
    assert one.each <= one.total * (1 - machine.SPARE)


def test_mem_tracker_agrees_with_ours():
    """Two ways to count the same real step."""
    network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8))
    x = torch.randn(32, 64)

    def step():
        network(x).sum().backward()
        for parameter in network.parameters():
            parameter.grad = None

    theirs = MemTracker()
    theirs.track_external(network, x)
    with theirs:
        step()
    with StorageTracker([*network.parameters(), x]) as ours:
        step()
    assert ours.peak == theirs.get_tracker_snapshot("peak")[CPU]["Total"]
