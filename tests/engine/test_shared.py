"""What the engines share."""

import torch
from torch import nn

from orchestrator.data.types import Batch, GlobalBatch
from orchestrator.engine.shared import blank, buffers_kept, empty_loss, seed_micro_batch
from orchestrator.seeding import DROPOUT, derive


def test_a_micro_batch_seeds_the_generators_as_torch_does():
    with torch.random.fork_rng():
        torch.manual_seed(derive(7, DROPOUT, 2, 5, 3))
        expected = torch.get_rng_state(), torch.dropout(torch.ones(100), 0.5, True)
        torch.manual_seed(0)
        seed_micro_batch(7, GlobalBatch(2, 5, 0, (), ()), 3)
        found = torch.get_rng_state(), torch.dropout(torch.ones(100), 0.5, True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_blank_samples_leave_nothing_behind():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    none = Batch(torch.zeros(0, dtype=torch.int64), {"image": torch.zeros(0, 3, 8, 8)}, {})
    before = [buffer.clone() for buffer in model.buffers()]
    with buffers_kept(model):
        output = empty_loss(model(blank(none).inputs["image"]))
        output.loss.backward()
        assert int(model[1].num_batches_tracked) == 1
    assert output.outputs.shape == (0, 5)
    assert all(map(torch.equal, model.buffers(), before))
    assert all(torch.equal(one.grad, torch.zeros_like(one)) for one in model.parameters())
