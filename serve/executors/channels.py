"""Members of one architecture side by side in the channels of one network.

A tensor [B, C, …] of one member becomes [B, M·C, …] of M members, the first member's channels
first. Convolutions have M times the groups then, as ResNeXt has within one network (Xie et al.,
"Aggregated residual transformations for deep neural networks", 2017), a linear layer is a grouped
1×1 convolution, and what works on every channel alone stays as it is. Nothing moves between layers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from orchestrator.serve.executors.graph import Graph, holder

_A = torch.ops.aten
_ALONE = {
    *(_A.relu.default, _A.relu_.default, _A.silu.default, _A.silu_.default, _A.gelu.default),
    *(_A.hardtanh.default, _A.hardtanh_.default, _A.hardswish.default, _A.hardswish_.default),
    *(_A.sigmoid.default, _A.hardsigmoid.default, _A.tanh.default, _A.elu.default),
    *(_A.relu6.default, _A.leaky_relu.default, _A.leaky_relu_.default),
    *(_A.max_pool2d.default, _A.avg_pool2d.default, _A.adaptive_avg_pool2d.default),
}
"""What treats every channel alike, and alone."""
_PAIRS = {
    *(_A.add.Tensor, _A.add_.Tensor, _A.sub.Tensor, _A.mul.Tensor, _A.mul_.Tensor, _A.div.Tensor),
}
_OVER_PLACES = {_A.mean.dim, _A.amax.default, _A.sum.dim_IntList}


class UnstackableError(ValueError):
    """A network has an operation of which nothing here knows that it keeps to its channels."""


def side_by_side(
    graph: Graph, networks: Sequence[nn.Module], *, same_inputs: bool
) -> fx.GraphModule:
    """One network that computes what several do.

    Args:
        graph: their architecture.
        networks: what differs in weights alone.
        same_inputs: whether all read the same x [B, C, …]; otherwise it is [B, M·C, …].

    Returns:
        A module from x to logits [B, M·classes].

    Raises:
        UnstackableError: if an operation is not known to keep to its channels.
    """
    return _Stacking([graph.with_weights(one) for one in networks], same_inputs).module()


class _Stacking:
    """Walks one member's graph and writes that of all of them.

    Args:
        members: with the same graph.
        same_inputs: see `side_by_side`.
    """

    def __init__(self, members: Sequence[fx.GraphModule], same_inputs: bool) -> None:
        self._states = [dict(member.named_buffers()) for member in members]
        self._source, self._same_inputs = members[0].graph, same_inputs
        self._target, self._tensors = fx.Graph(), dict[str, Tensor]()
        self._made: dict[fx.Node, fx.Node] = {}
        """Of a node that depends on x: the new graph's."""
        self._shared: set[fx.Node] = set()
        """Those of them that are the same for all members, with C channels."""
        self._fixed: dict[fx.Node, list[Any]] = {}
        """Of a node that does not depend on x: its value, one a member."""

    def module(self) -> fx.GraphModule:
        """The new network."""
        for node in self._source.nodes:
            if node.op == "placeholder":
                self._made[node] = self._copied(node)
                if self._same_inputs:
                    self._shared.add(node)
            elif node.op == "get_attr":
                self._fixed[node] = [state[str(node.target)] for state in self._states]
            elif node.op == "call_function":
                self._call(node)
            else:
                self._output(node)
        return fx.GraphModule(holder(self._tensors), self._target)

    def _call(self, node: fx.Node) -> None:
        if all(parent in self._fixed for parent in node.all_input_nodes):
            self._fixed[node] = [self._computed(node, m) for m in range(len(self._states))]
        elif node.target in _RULES:
            self._made[node] = _RULES[node.target](self, node)
        elif self._keeps_to_channels(node):
            self._made[node] = self._copied(node)
            if node.all_input_nodes[0] in self._shared:
                self._shared.add(node)
        else:
            raise UnstackableError(f"{node.target} is not known to keep to its channels")

    def _computed(self, node: fx.Node, member: int) -> Any:
        operation: Any = node.target
        given: Any = (node.args, node.kwargs)
        args, kwargs = map_arg(given, lambda parent: self._fixed[parent][member])
        return operation(*args, **kwargs)

    def _output(self, node: fx.Node) -> None:
        (result,) = node.all_input_nodes
        if result not in self._made or result in self._shared or len(_shape(result)) != 2:
            raise UnstackableError("the result is no table of logits")
        self._target.output(self._made[result])

    def _copied(self, node: fx.Node) -> fx.Node:
        return self._target.node_copy(node, lambda parent: self._made[parent])

    def _keeps_to_channels(self, node: fx.Node) -> bool:
        """Whether the operation does for M·C channels what it does for C."""
        parents = node.all_input_nodes
        if any(parent in self._fixed for parent in parents):
            return False
        if len({parent in self._shared for parent in parents}) > 1:
            return False
        shape = _shape(parents[0])
        if node.target in _ALONE:
            return len(shape) >= 2
        if node.target in _PAIRS:
            return len({(len(_shape(one)), _shape(one)[1]) for one in parents}) == 1
        if node.target in _OVER_PLACES:
            return min((dim % len(shape) for dim in _argument(node, 1, ()) or ()), default=0) >= 2
        if node.target is _A.flatten.using_ints:
            return bool(_argument(node, 1, 0) % len(shape) >= 1)
        if node.target is _A.unsqueeze.default:
            return bool(_argument(node, 1, 0) % (len(shape) + 1) >= 2)
        if node.target is _A.slice.Tensor:
            every = [0, sys.maxsize]  # what a colon in an index is
            return _argument(node, 1, 0) % len(shape) != 1 or list(node.args[2:]) == every
        return False

    # --- rules of operations with weights, and of those that move channels --------------------

    def _identity(self, node: fx.Node) -> fx.Node:
        (parent,) = node.all_input_nodes
        if parent in self._shared:
            self._shared.add(node)
        return self._made[parent]

    def _convolution(self, node: fx.Node) -> fx.Node:
        x, weight, bias, stride, padding, dilation, groups = _filled(
            node, (None, None, None, [1, 1], [0, 0], [1, 1], 1)
        )
        if x not in self._made or isinstance(padding, str):
            raise UnstackableError("a convolution whose kernel depends on x")
        shared = x in self._shared
        made = self._made[x]
        if shared and groups > 1:
            made = self._function(_A.repeat.default, made, [1, len(self._states), 1, 1])
        # Kernels that all read the same x are one convolution's, which needs no groups.
        many = 1 if shared and groups == 1 else groups * len(self._states)
        new = self._weights(node, self._values(weight), bias)
        return self._function(_A.conv2d.default, made, *new, stride, padding, dilation, many)

    def _linear(self, node: fx.Node) -> fx.Node:
        x, weight, bias = _filled(node, (None, None, None))
        if x not in self._made or len(_shape(x)) != 2:
            raise UnstackableError("a linear layer that does not read a table")
        new = self._weights(node, [one[:, :, None, None] for one in self._values(weight)], bias)
        made = self._function(_A.unsqueeze.default, self._made[x], 2)
        made = self._function(_A.unsqueeze.default, made, 3)
        many = 1 if x in self._shared else len(self._states)
        made = self._function(_A.conv2d.default, made, *new, [1, 1], [0, 0], [1, 1], many)
        return self._function(_A.flatten.using_ints, made, 1)

    def _weights(
        self, node: fx.Node, weights: Sequence[Tensor], bias: Any
    ) -> tuple[fx.Node, fx.Node | None]:
        """Kernels and biases of all members."""
        kernel = self._attribute(f"{node.name}_weight", torch.cat(list(weights)))
        if bias is None:
            return kernel, None
        return kernel, self._attribute(f"{node.name}_bias", torch.cat(self._values(bias)))

    def _norm(self, node: fx.Node) -> fx.Node:
        x, *tensors = _filled(node, ())[:5]
        if x not in self._made or x in self._shared:
            raise UnstackableError("a batch norm of the input")
        new = [
            None
            if one is None
            else self._attribute(f"{node.name}_{n}", torch.cat(self._values(one)))
            for n, one in enumerate(tensors)
        ]
        return self._function(node.target, self._made[x], *new, *node.args[5:])

    def _joined(self, node: fx.Node) -> fx.Node:
        parts, dim = _filled(node, ((), 0))
        if dim % len(_shape(node)) != 1 or any(
            part not in self._made or part in self._shared for part in parts
        ):
            raise UnstackableError("tensors joined along another axis than the channels")
        # With the channels last, as they lie in memory, each is copied once, and so they stay.
        last = [self._function(_A.movedim.int, self._made[part], 1, -1) for part in parts]
        apart = [
            self._function(_A.unflatten.int, one, -1, [len(self._states), _shape(part)[1]])
            for one, part in zip(last, parts, strict=True)
        ]
        joined = self._function(_A.cat.default, apart, -1)
        together = self._function(_A.flatten.using_ints, joined, -2)
        return self._function(_A.movedim.int, together, -1, 1)

    def _values(self, node: Any) -> list[Tensor]:
        if node not in self._fixed:
            raise UnstackableError("weights that depend on x")
        return self._fixed[node]

    def _attribute(self, name: str, value: Tensor) -> fx.Node:
        self._tensors[name] = value.detach()
        return self._target.create_node("get_attr", name)

    def _function(self, target: Any, *args: Any) -> fx.Node:
        return self._target.call_function(target, args)


_RULES: dict[Any, Callable[[_Stacking, fx.Node], fx.Node]] = {
    _A.conv2d.default: _Stacking._convolution,
    _A.linear.default: _Stacking._linear,
    _A.batch_norm.default: _Stacking._norm,
    _A.cat.default: _Stacking._joined,
    _A.dropout.default: _Stacking._identity,
}


def _shape(node: fx.Node) -> tuple[Any, ...]:
    """Of one member's tensor, as torch's exporter found it; () of what is no tensor."""
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _filled(node: fx.Node, defaults: Sequence[Any]) -> list[Any]:
    """The arguments by position, with what an operation takes where one is left out."""
    return [*node.args, *defaults[len(node.args) :]]


def _argument(node: fx.Node, place: int, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else default
