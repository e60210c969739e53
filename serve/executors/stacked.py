"""Members of one architecture as one network: every operation runs once, for all of them.

torch's `vmap` gives each operation a further axis, the member's: convolutions become grouped ones,
linear layers batched products. On a GPU, and with small batches, the time goes into starting
operations, of which there are then fewer by the number of members.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from orchestrator.serve.executors.forwards import Precision
from orchestrator.serve.executors.graph import Graph, holder

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class StackedForward:
    """The logits of M networks at once.

    Args:
        graph: their architecture.
        networks: what differs in weights alone.
        same_inputs: whether all read the same numbers.
    """

    def __init__(
        self,
        graph: Graph,
        networks: Sequence[nn.Module],
        device: torch.device,
        precision: Precision,
        *,
        same_inputs: bool,
    ) -> None:
        self._device, self._dtype = device, _DTYPES[precision]
        states = [dict(graph.with_weights(network).named_buffers()) for network in networks]
        self._state = {
            name: torch.stack([state[name] for state in states]).to(device) for name in states[0]
        }
        if precision != "fp32":
            self._state = {
                name: t.to(self._dtype) if t.is_floating_point() else t
                for name, t in self._state.items()
            }
        self._graph = graph.module.graph
        base = fx.GraphModule(holder(states[0]), copy.deepcopy(self._graph)).to("meta")

        def one(state: dict[str, Tensor], x: Tensor) -> Tensor:
            logits: Tensor = functional_call(base, state, (x,))
            return logits

        self._all = torch.vmap(one, in_dims=(0, None if same_inputs else 0))
        self._same_inputs = same_inputs

    def __call__(self, xs: Sequence[Tensor]) -> Tensor:
        """Logits float32[M, B, classes] on the CPU.

        Args:
            xs: what each member reads, on the CPU.
        """
        x = xs[0] if self._same_inputs else torch.stack(list(xs))
        x = x.to(self._device, self._dtype) if x.is_floating_point() else x.to(self._device)
        logits: Tensor = self._all(self._state, x)
        return logits.float().cpu()

    def member(self, number: int) -> fx.GraphModule:
        """One member alone; its weights are those of the stack, not a copy."""
        state = {name: t[number] for name, t in self._state.items()}
        return fx.GraphModule(holder(state), copy.deepcopy(self._graph))
