"""A network that needs little but activations, in a process whose memory is limited.

Its first forward pass sets a real limit on the process's address space (RLIMIT_AS): what the
process has, plus the MiB in the variable WIDE_ALLOWANCE. WIDE_RANK names the only rank that has
the limit.
"""

import os
import resource
from pathlib import Path

import torch
from torch import nn

WIDTH = 2**21
"""Numbers of a sample between two operations: 8 MiB."""
DEPTH = 8


class Wide(nn.Module):
    def __init__(self, classes: int, pixels: int) -> None:
        super().__init__()
        self.head = nn.Linear(pixels, classes)
        self.scale = nn.Parameter(torch.ones(()))
        self._limited = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self._limited and self.training:
            self._limited = True
            limit()
        x = x.flatten(1)
        wide = x[:, :1].expand(-1, WIDTH) * self.scale
        for _ in range(DEPTH):
            wide = wide.abs()  # each keeps its input, of WIDTH numbers a sample
        return self.head(x) * (1 + wide.mean(1, keepdim=True))


def limit() -> None:
    """Lets this process take WIDE_ALLOWANCE MiB more than it has, once."""
    allowance, only = os.environ.get("WIDE_ALLOWANCE"), os.environ.get("WIDE_RANK")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if allowance is None or soft != resource.RLIM_INFINITY:
        return
    if only is not None and int(only) != torch.distributed.get_rank():
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    taken = pages * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + int(allowance) * 2**20, hard))
