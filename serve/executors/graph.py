"""Networks as graphs of tensor operations, with their batch norms folded into convolutions.

torch's exporter turns a network into a flat list of operations whatever its Python code looks
like. A graph is exported once for an architecture; members that differ in their weights share it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_CONVOLUTIONS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv1d.default)
_BATCH_NORM = torch.ops.aten.batch_norm.default
_WEIGHT, _BIAS = 1, 2
"""Places of a convolution's arguments."""


@dataclass(frozen=True)
class Graph:
    """An architecture as operations, without weights.

    Attributes:
        module: computes logits [B, classes] of x [B, …]; its weights are those of one member.
        folds: convolutions that took in the batch norm behind them.
    """

    module: fx.GraphModule
    folds: tuple[_Fold, ...]

    def with_weights(self, network: nn.Module) -> fx.GraphModule:
        """A graph that computes what `network`, of the same architecture, does."""
        state = {name: tensor.detach() for name, tensor in _tensors(network).items()}
        return fx.GraphModule(holder(self._wanted(state)), copy.deepcopy(self.module.graph))

    def _wanted(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        known = dict(state) | {name: value for fold in self.folds for name, value in fold.of(state)}
        constants = _tensors(self.module)
        return {name: known.get(name, constants[name]) for name in _named(self.module.graph)}


@dataclass(frozen=True)
class _Fold:
    """A convolution and the batch norm behind it, by the names of their tensors."""

    name: str
    weight: str
    bias: str | None
    norm: tuple[str | None, str | None, str, str]
    """Scale, shift, mean and variance."""
    eps: float

    def of(self, state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
        # In fp64: what folding adds to the rounding is then far below that of the arithmetic.
        scale, shift, mean, variance = (None if n is None else state[n].double() for n in self.norm)
        assert mean is not None and variance is not None
        bias: Tensor | None = None if self.bias is None else state[self.bias].double()
        weight, bias = fuse_conv_bn_weights(
            state[self.weight].double(), bias, mean, variance, self.eps, scale, shift
        )
        assert bias is not None
        kind = state[self.weight].dtype
        return [
            (f"{self.name}_weight", weight.detach().to(kind)),
            (f"{self.name}_bias", bias.detach().to(kind)),
        ]


def export(network: nn.Module, example: Tensor) -> Graph:
    """The operations of a network in evaluation mode, for any number of samples.

    Args:
        network: gives logits [B, classes].
        example: an input of two samples or more.

    Raises:
        Exception: whatever torch's exporter finds that it can't follow.
    """
    # In the plain format, in which no layer takes a way of its own for channels-last images.
    plain: Any = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    batch = torch.export.Dim("batch")
    program = torch.export.export(plain, (example.contiguous(),), dynamic_shapes=({0: batch},))
    exported: Any = program.module()
    graph, state = exported.graph, _tensors(exported)
    for node in list(graph.nodes):  # checks of the input's shape, which is known
        if node.op == "call_module":
            graph.erase_node(node)
    folds = _fold(graph)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    known = state | {name: value for fold in folds for name, value in fold.of(state)}
    kept = {name: known[name].detach() for name in _named(graph)}
    return Graph(fx.GraphModule(holder(kept), graph), tuple(folds))


def _fold(graph: fx.Graph) -> list[_Fold]:
    folds: list[_Fold] = []
    for norm in list(graph.nodes):
        conv = norm.args[0] if norm.target is _BATCH_NORM else None
        if conv is None or conv.target not in _CONVOLUTIONS or len(conv.users) > 1:
            continue
        tensors = [*conv.args[_WEIGHT : _BIAS + 1], *norm.args[1:5]]
        if any(one is not None and one.op != "get_attr" for one in tensors):
            continue  # kernels that are computed, as standardised ones are
        if any(fold.name in str(tensors[0]) for fold in folds):
            continue  # a second norm
        weight, *rest = (None if one is None else str(one.target) for one in tensors)
        bias = rest.pop(0) if len(conv.args) > _BIAS else None
        fold = _Fold(f"folded{len(folds)}", str(weight), bias, tuple(rest), norm.args[7])  # type: ignore[arg-type]
        with graph.inserting_before(conv):
            made = (f"{fold.name}_{part}" for part in ("weight", "bias"))
            new = [graph.create_node("get_attr", name) for name in made]
        conv.args = (conv.args[0], *new, *conv.args[_BIAS + 1 :])
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)
        folds.append(fold)
    return folds


def _named(graph: fx.Graph) -> list[str]:
    return list(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr"))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and constants by name; tied ones under each of their names."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    found |= dict(module.named_buffers(remove_duplicate=False))
    for prefix, inner in module.named_modules():
        for name, value in vars(inner).items():
            if isinstance(value, Tensor):
                found[f"{prefix}.{name}" if prefix else name] = value
    return found


def holder(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module that owns the tensors as buffers under their dotted names."""
    root = nn.Module()
    for path, tensor in tensors.items():
        *parents, name = path.split(".")
        owner = root
        for parent in parents:
            if not hasattr(owner, parent):
                owner.add_module(parent, nn.Module())
            owner = getattr(owner, parent)
        owner.register_buffer(name, tensor)
    return root.eval()
