"""A graph made ready for oneDNN: kernels laid out once, activations within convolutions.

What torch's convolution costs besides the arithmetic is that it lays out its kernel again in every
call, half of the time of a small batch, and that an activation reads and writes the whole result
once more. The operations used here are those that `torch.compile` takes on the CPU, without its
minute of compilation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from orchestrator.serve.executors.graph import holder

_A = torch.ops.aten
_ACTIVATIONS: dict[Any, tuple[str, tuple[float, ...]]] = {
    _A.relu.default: ("relu", ()),
    _A.relu_.default: ("relu", ()),
    _A.silu.default: ("swish", ()),
    _A.silu_.default: ("swish", ()),
    _A.hardswish.default: ("hardswish", ()),
    _A.hardswish_.default: ("hardswish", ()),
    _A.sigmoid.default: ("sigmoid", ()),
    _A.hardtanh.default: ("hardtanh", (-1, 1)),
    _A.hardtanh_.default: ("hardtanh", (-1, 1)),
    _A.relu6.default: ("hardtanh", (0, 6)),
}
"""By their names in oneDNN, with its numbers where the operation leaves them out."""


def pack(module: fx.GraphModule, example: Tensor) -> fx.GraphModule:
    """The same network on the CPU, for inference alone.

    Args:
        module: operations of `Graph`, in fp32 or bf16; its graph is changed in place.
        example: what it reads, in its precision, channels-last; kernels are laid out for this
            number of samples, and others run with them too.

    Raises:
        RuntimeError: if this build of torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        raise RuntimeError("this torch has no oneDNN")
    with torch.no_grad():
        ShapeProp(module).propagate(example)
    graph, tensors = module.graph, dict(module.named_buffers())
    for node in list(graph.nodes):
        if node.target is _A.conv2d.default and _fixed(node):
            _pack_convolution(graph, tensors, node)
        elif node.target is _A.mean.dim:
            _pool(graph, node)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    named = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    return fx.GraphModule(holder({name: tensors[name] for name in named}), graph)


def _pack_convolution(graph: fx.Graph, tensors: dict[str, Tensor], node: fx.Node) -> None:
    """The convolution and the activation behind it as one operation."""
    defaults = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    given: list[Any] = [*node.args, *defaults[len(node.args) :]]
    x, weight, bias, stride, padding, dilation, groups = given
    name = f"{node.name}_packed"
    plain = tensors[str(weight.target)].contiguous(memory_format=torch.channels_last)
    tensors[name] = torch.ops.mkldnn._reorder_convolution_weight(
        plain, padding, stride, dilation, groups, list(_shape(x))
    )
    last, activation, scalars = _activation(node)
    with graph.inserting_before(node):
        how = (graph.create_node("get_attr", name), bias, padding, stride, dilation, groups)
        new = graph.call_function(
            torch.ops.mkldnn._convolution_pointwise.default, (x, *how, activation, scalars, "")
        )
    new.meta = dict(node.meta)
    last.replace_all_uses_with(new)
    for one in dict.fromkeys((last, node)):
        graph.erase_node(one)


def _activation(node: fx.Node) -> tuple[fx.Node, str, list[Any]]:
    """The last node of convolution and activation, the activation's name and its numbers."""
    users = list(node.users)
    if len(users) != 1 or users[0].target not in _ACTIVATIONS:
        return node, "none", []
    name, numbers = _ACTIVATIONS[users[0].target]
    given = users[0].args[1:]
    return users[0], name, [*given, *numbers[len(given) :]]


def _pool(graph: fx.Graph, node: fx.Node) -> None:
    """The mean over all places as a pooling, which copies nothing to fp32 where x is bf16."""
    given: list[Any] = [*node.args, *(None, (), False)[len(node.args) :]]
    x, dims, keep = given
    shape = _shape(x)
    if node.kwargs or len(shape) != 4 or sorted(dim % 4 for dim in dims or ()) != [2, 3]:
        return
    with graph.inserting_before(node):
        new = graph.call_function(_A.avg_pool2d.default, (x, list(shape[2:])))
        if not keep:
            new = graph.call_function(_A.flatten.using_ints, (new, 1))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _fixed(node: fx.Node) -> bool:
    """Whether kernel and bias are weights."""
    weights = [one for one in node.args[1:3] if one is not None]
    return all(isinstance(one, fx.Node) and one.op == "get_attr" for one in weights)


def _shape(node: Any) -> tuple[int, ...]:
    """Of a tensor, as it was in the example's run; () of what is no tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))
