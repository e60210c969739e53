"""What a network consists of: its stages and layers, with shapes, parameters and multiply-adds.

All of it is found on the meta device, where tensors have a shape but no numbers: a large model
needs no memory and about a second.

A multiply-add is one multiplication together with the addition of its result. Counted are those
of convolutions, matrix products and attention, for one sample in evaluation mode; norms,
activations and the addition of biases are left out, and pooling where it is no matrix product.
Papers on image models count like this and often call it FLOPs; where a multiplication and an
addition are two, it is twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from orchestrator.config.model import Model
from orchestrator.errors import OrchError, UserError
from orchestrator.models.stages import Stage, State
from orchestrator.networks import build_network

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """A stage, or a layer in one.

    Attributes:
        name: a stage's own name, or a layer's path in the network, as `freeze` takes it.
        kind: the layer's class; empty for a stage.
        outputs: the shape of each tensor that it gives, for one sample.
        parameters: of a stage, with all that is in it; of a layer, its own. A tensor that is used
            again counts where it is used first.
        multiply_adds: likewise.
        layers: of a stage, in the order in which they begin: modules that hold parameters or
            multiply. What a stage does outside them is in its own numbers only.
    """

    name: str
    kind: str
    outputs: tuple[Shape, ...]
    parameters: int
    multiply_adds: int
    layers: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A network's stages, and the sums over them."""

    stages: tuple[Row, ...]
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Input:
    """What a network reads and how much it answers.

    Attributes:
        shape: (C, H, W) of an image, (T,) of a text, (S, T) of a text and its target text.
        classes: how many outputs the head has.
        vocabulary: how many tokens there are; None for images.
        per_token: of texts: whether each token has an answer, or the whole text one.
    """

    shape: Shape
    classes: int = 1000
    vocabulary: int | None = None
    per_token: bool = False

    def sample(self) -> State:
        """A batch of one on the meta device, as a network's first stage takes it."""
        if self.vocabulary is None:
            return torch.empty(1, *self.shape, device="meta")
        texts = [torch.empty(1, n, dtype=torch.long, device="meta") for n in self.shape]
        return texts[0] if len(texts) == 1 else tuple(texts)


def describe(section: Model, reads: Input) -> Summary:
    """Summarises the network that a `model:` section stands for.

    Args:
        section: the model and its options; its weights are not read.
        reads: what it gets.

    Raises:
        UserError: if the network can't be built for this input, or needs numbers to run.
    """
    try:
        with torch.device("meta"):
            network = build_network(
                section,
                outputs=reads.classes,
                shape=reads.shape,
                vocabulary=reads.vocabulary,
                per_token=reads.per_token,
                load=False,
            )
        return summarize(network, reads.sample())
    except OrchError:
        raise
    except Exception as error:  # whatever a user's own network does without numbers
        size, why = "×".join(map(str, reads.shape)), str(error).split("\n", 1)[0]
        raise UserError(
            f"model {section.type} does not run on an input of {size} without numbers (on "
            f"PyTorch's meta device): {type(error).__name__}: {why}"
        ) from error


def summarize(network: nn.Module, x: State) -> Summary:
    """Follows one sample through a network.

    A network without `stages` is one stage, named ``forward``.

    Args:
        network: on the meta device. It is put into evaluation mode.
        x: what its first stage takes, on the same device; a batch of one.
    """
    whole = [Stage("forward", network, (network,))]
    stages: list[Stage] = network.stages() if hasattr(network, "stages") else whole  # type: ignore[operator]
    network.eval()
    seen: set[int] = set()
    rows: list[Row] = []
    with torch.no_grad(), _Counter() as counter, _Watch(network, counter) as at:
        for stage in stages:
            before = counter.multiply_adds
            x = stage.fn(x)
            cost = counter.multiply_adds - before
            size = _count_new(stage.parameters(), seen)
            rows.append(Row(stage.name, "", _shapes(x), size, cost, at.take()))
    total = _count_new(network.parameters(), set())
    return Summary(tuple(rows), total, sum(row.multiply_adds for row in rows))


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While open, counts by PyTorch's formulas, in which an addition is one more.

    `FlopCounterMode` has the same formulas, but also follows modules, which doubles the time and
    fails under `no_grad` on some views of parameters.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.multiply_adds = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.native_batch_norm.default:
            # PyTorch derives these shapes by formulas in Python, a third of a listing's time.
            nothing = args[0].new_empty(0)
            return torch.empty_like(args[0]), nothing, nothing
        output = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.multiply_adds += formula(*args, **(kwargs or {}), out_val=output) // 2
        return output


class _Watch:
    """While open, notes every module that runs, and what it costs without those inside it."""

    def __init__(self, network: nn.Module, counter: _Counter) -> None:
        self._counter = counter
        self._names = {module: name for name, module in network.named_modules() if name}
        self._handles: list[RemovableHandle] = []
        self._rows: list[Row] = []
        self._running: list[list[int]] = []  # [its row, cost before it, cost of those inside]
        self._seen: set[int] = set()

    def __enter__(self) -> _Watch:
        for module in self._names:
            self._handles.append(module.register_forward_pre_hook(self._begin))
            self._handles.append(module.register_forward_hook(self._end))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> tuple[Row, ...]:
        """The layers since the last call that hold parameters or multiply."""
        rows, self._rows = self._rows, []
        return tuple(row for row in rows if row.parameters or row.multiply_adds)

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._running.append([len(self._rows), self._counter.multiply_adds, 0])
        self._rows.append(Row(self._names[module], type(module).__name__, (), 0, 0))

    def _end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        number, before, inside = self._running.pop()
        cost = self._counter.multiply_adds - before
        if self._running:
            self._running[-1][2] += cost
        self._rows[number] = replace(
            self._rows[number],
            outputs=_shapes(output),
            parameters=_count_new(module.parameters(recurse=False), self._seen),
            multiply_adds=cost - inside,
        )


def _count_new(parameters: Iterable[nn.Parameter], seen: set[int]) -> int:
    """Numbers in the parameters that are not in `seen`, which they join."""
    fresh = {id(one): one.numel() for one in parameters if id(one) not in seen}
    seen.update(fresh)
    return sum(fresh.values())


def _shapes(output: Any) -> tuple[Shape, ...]:
    tensors = output if isinstance(output, tuple | list) else (output,)
    return tuple(tuple(one.shape) for one in tensors if isinstance(one, torch.Tensor))
