"""What the engines share."""

import torch

from orchestrator.data.types import GlobalBatch
from orchestrator.engine.shared import seed_micro_batch
from orchestrator.seeding import DROPOUT, derive


def test_a_micro_batch_seeds_the_generators_as_torch_does():
    with torch.random.fork_rng():
        torch.manual_seed(derive(7, DROPOUT, 2, 5, 3))
        expected = torch.get_rng_state(), torch.dropout(torch.ones(100), 0.5, True)
        torch.manual_seed(0)
        seed_micro_batch(7, GlobalBatch(2, 5, 0, (), ()), 3)
        found = torch.get_rng_state(), torch.dropout(torch.ones(100), 0.5, True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
