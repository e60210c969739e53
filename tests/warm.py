"""What a rank of a group needs, imported once: ranks are forked from a process that has it."""

import torch
import torch._dynamo  # which optimizers import when the first one is made

from orchestrator.engine.deepspeed_setup import import_deepspeed
from tests.groups import freeze

import_deepspeed(torch.device("cpu"))
freeze()
