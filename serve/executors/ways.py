"""The ways in which a model could run: listed, described in words, and built."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor, nn

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.backend import Inputs
from orchestrator.serve.executors.ensemble import (
    MembersExecutor,
    Patience,
    StackedExecutor,
    WholeExecutor,
)
from orchestrator.serve.executors.forwards import (
    Forward,
    OnnxForward,
    OnnxMaker,
    Precision,
    TorchForward,
)
from orchestrator.serve.executors.front import Front
from orchestrator.serve.executors.graph import Graph, export
from orchestrator.serve.executors.stacked import Stack, stacked_forward
from orchestrator.serve.images import to_unit

Built = MembersExecutor | StackedExecutor | WholeExecutor
Engine = Literal["torch", "folded", "stacked", "compiled", "onnx"]
_ON_CPU: dict[Engine, tuple[Precision, ...]] = {
    "torch": ("fp32",),
    "stacked": ("fp32", "bf16"),
    "compiled": ("fp32", "bf16"),
    "onnx": ("fp32", "int8"),
}
_ON_GPU: dict[Engine, tuple[Precision, ...]] = {
    "torch": ("fp32",),
    "folded": ("fp32", "bf16"),
    "stacked": ("fp32", "bf16"),
}
"""What `executor: auto` tries, what is ready soonest first."""
_ASKED: dict[Engine, tuple[Precision, ...]] = _ON_CPU | {"torch": ("fp32", "bf16")}
"""What there is of an engine that is asked for by name."""
TYPICAL_BATCH = 8
"""Samples for which kernels are laid out."""
_NAMES = {
    "torch": "torch",
    "folded": "torch, folded",
    "compiled": "torch, compiled graph, folded",
    "onnx": "onnxruntime, folded",
}


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    Attributes:
        engine: what computes; `torch` is the network as it was loaded.
        threads: members that compute at the same time, each with one thread.
    """

    engine: Engine
    precision: Precision = "fp32"
    threads: int = 1

    def words(self, members: int) -> str:
        """What people read, such as "onnxruntime, folded, fp32, 8 members on 2 threads"."""
        if self.engine == "stacked":
            return f"stacked ×{members}, folded, {self.precision}"
        layout = "" if self.engine == "onnx" else ", channels-last"
        text = f"{_NAMES[self.engine]}{layout}, {self.precision}"
        if members == 1:
            return text
        side = f" on {self.threads} threads" if self.threads > 1 else " in turn"
        return f"{text}, {members} members{side}"


@dataclass
class Workshop:
    """Builds the ways of one model; what several of them need is made once.

    Attributes:
        samples: inputs as clients send them: examples for exporters, and int8's calibration.
        threads: of the process.
    """

    front: Front
    samples: Inputs
    device: torch.device
    threads: int
    config: ServeConfig
    _graphs: dict[str, Graph | None] = field(default_factory=dict)
    _forwards: dict[tuple[Engine, Precision, int], Forward] = field(default_factory=dict)
    _makers: dict[str, OnnxMaker] = field(default_factory=dict)
    _one: tuple[Graph, OnnxMaker] | None = None

    def ways(self) -> list[Way]:
        """Every way that the configuration allows, what is ready soonest first."""
        asked, on_cpu = self.config.executor, self.device.type == "cpu"
        automatic = _ON_CPU if on_cpu else _ON_GPU
        engines: dict[Engine, tuple[Precision, ...]]
        engines = automatic if asked == "auto" else {asked: _ASKED[asked]}
        possible = [engine for engine in engines if self._can(engine)]
        return [
            Way(engine, precision, threads)
            for engine in possible
            for precision in engines[engine]
            if self.config.precision in ("auto", precision)
            for threads in self._widths(engine)
        ]

    def _can(self, engine: Engine) -> bool:
        if engine == "stacked":
            # One after another is what lets samples leave early.
            alike = len(set(self.front.architectures)) == 1
            return len(self.front.networks) > 1 and alike and self.config.early_exit is None
        return engine != "onnx" or (self.device.type == "cpu" and has_onnx())

    def _widths(self, engine: Engine) -> list[int]:
        """How many members compute at the same time: all threads' worth, or one as it was."""
        most = min(self.threads, len(self.front.networks)) if self.device.type == "cpu" else 1
        if engine == "stacked":
            return [1]
        return sorted({1, most}) if engine == "torch" else [most]

    def build(self, way: Way, max_batch: int) -> Built:
        """The executor of a way.

        Raises:
            Exception: whatever the engine can't do with this network.
        """
        with warnings.catch_warnings():
            # torch's exporter warns of itself, which is not for whoever starts a server.
            warnings.simplefilter("ignore", FutureWarning)
            return self._built(way, max_batch)

    def _built(self, way: Way, max_batch: int) -> Built:
        words = way.words(len(self.front.networks))
        if way.engine == "stacked":
            return self._stacked(way, words, max_batch)
        whole = self.front.whole() if way.engine == "onnx" else None
        if whole is not None:
            return WholeExecutor(self.front.card, self._whole(way, whole), words, max_batch)
        forwards = [self._forward(way, number) for number in range(len(self.front.networks))]
        return MembersExecutor(
            self.front, forwards, words, max_batch, self._patience, threads=way.threads
        )

    @property
    def _patience(self) -> Patience:
        return Patience(self.config.quorum, self.config.early_exit)

    def _stacked(self, way: Way, words: str, max_batch: int) -> Built:
        graph = self._graph(0)
        if graph is None:
            raise ValueError("torch can't export the network")
        stack = Stack(
            graph, self.front.networks, self.device, way.precision, self.front.same_inputs
        )
        forward = stacked_forward(stack, self._xs[0][:TYPICAL_BATCH])
        engine: Engine = "compiled" if self.device.type == "cpu" else "folded"
        single = Way(engine, way.precision)
        alone = [self._forward(single, number) for number in range(len(self.front.networks))]
        in_turn = MembersExecutor(self.front, alone, words, max_batch, self._patience)
        return StackedExecutor(self.front, forward, in_turn, words, max_batch)

    def _forward(self, way: Way, number: int) -> Forward:
        network = self.front.networks[number]
        if way.engine == "torch":
            exact = way.precision == "fp32"
            return TorchForward(
                network if exact else copy.deepcopy(network), self.device, way.precision
            )
        graph = self._graph(number)
        if way.engine == "onnx":
            return self._onnx(way, number, graph)
        key = (way.engine, way.precision, number)
        if key not in self._forwards:
            module = copy.deepcopy(network) if graph is None else graph.with_weights(network)
            frozen = way.engine == "compiled"
            self._forwards[key] = TorchForward(
                module, self.device, way.precision, frozen=frozen, example=self._example(number)
            )
        return self._forwards[key]

    def _whole(self, way: Way, network: nn.Module) -> OnnxForward:
        pixels = torch.from_numpy(to_unit(self.samples))  # type: ignore[arg-type]
        if self._one is None:
            graph = export(network, pixels[:3].clone())
            self._one = graph, OnnxMaker(graph, pixels[:3].clone())
        graph, maker = self._one
        content = maker.file(graph.module)
        if way.precision == "int8":
            content = maker.quantised(content, pixels)
        return OnnxForward(content, self.threads)

    def _onnx(self, way: Way, number: int, graph: Graph | None) -> Forward:
        if graph is None:
            raise ValueError("torch can't export the network")
        key = self.front.architectures[number]
        if key not in self._makers:
            self._makers[key] = OnnxMaker(graph, self._example(number))
        maker = self._makers[key]
        content = maker.file(graph.with_weights(self.front.networks[number]))
        if way.precision == "int8":
            content = maker.quantised(content, self._xs[number])
        return OnnxForward(content, 1 if way.threads > 1 else self.threads)

    def _graph(self, number: int) -> Graph | None:
        """A member's architecture; None if torch can't export it for any number of samples."""
        key = self.front.architectures[number]
        if key not in self._graphs:
            network = self.front.networks[number]
            try:
                self._graphs[key] = export(network, self._example(number).to(self.device))
            except Exception:  # torch's exporter raises whatever it stumbles over
                self._graphs[key] = None
        return self._graphs[key]

    @cached_property
    def _xs(self) -> Sequence[Tensor]:
        return self.front(self.samples)

    def _example(self, number: int) -> Tensor:
        return self._xs[number][:3].clone()


def has_onnx() -> bool:
    """Whether ONNX Runtime, and what exports to it, are installed."""
    return all(find_spec(name) is not None for name in ("onnx", "onnxscript", "onnxruntime"))
