"""Ways to run one network: torch's operations one by one, a frozen TorchScript graph, ONNX Runtime.

Each is a function from what the network reads (float32[B, C, H, W], normalised, or int64[B, T]) to
its logits float32[B, classes], both on the CPU.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from orchestrator.serve.executors.graph import Graph

Forward = Callable[[Tensor], Tensor]
Precision = Literal["fp32", "bf16", "int8"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LARGEST = 1_900_000_000
"""Bytes of weights; a protobuf holds 2 GiB at most."""
_CALIBRATION_BATCH = 32


class TorchForward:
    """A module on a device.

    Args:
        module: gives logits; it is changed in place.
        frozen: pack a graph for oneDNN, and let TorchScript inline what is not packed.
        example: what the module is traced with, if it is frozen.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        precision: Precision = "fp32",
        *,
        frozen: bool = False,
        example: Tensor | None = None,
    ) -> None:
        self._device, self._dtype = device, DTYPES[precision]
        placed: Any = module.to(device, self._dtype)
        placed = placed.to(memory_format=torch.channels_last)
        if frozen:
            assert example is not None
            placed = _frozen(placed, self._placed(example))
        self._module: Callable[[Tensor], Tensor] = placed

    def __call__(self, x: Tensor) -> Tensor:
        """Logits; see the module's docstring."""
        return self._module(self._placed(x)).float().cpu()

    def _placed(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x.to(self._device)
        if x.ndim != 4:
            return x.to(self._device, self._dtype)
        return x.to(self._device, self._dtype, memory_format=torch.channels_last)


def _frozen(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings(), torch.no_grad():
        # TorchScript is in maintenance, but torch.compile took 43 s for a small network on the CPU,
        # which then was no faster.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        frozen: Callable[[Tensor], Tensor] = torch.jit.freeze(traced)
        for _ in range(2):  # the first call records shapes, the second one optimises for them
            frozen(example)
    return frozen


class OnnxForward:
    """A network in ONNX Runtime on the CPU.

    Args:
        model: the ONNX file's content.
        threads: within an operation.
    """

    def __init__(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Threads that wait for work without sleeping take the cores of the event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._name = self._session.get_inputs()[0].name

    def __call__(self, x: Tensor) -> Tensor:
        """Logits; see the module's docstring."""
        return torch.from_numpy(self.of_array(x.numpy()))

    def of_array(self, x: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
        """The same without torch, whose first steps take longer than a small network's last."""
        found: npt.NDArray[np.float32] = self._session.run(None, {self._name: x})[0]
        return found


class OnnxMaker:
    """Networks of one architecture as ONNX files; torch exports the first one alone.

    Args:
        graph: the architecture.
        example: an input of two samples or more.
    """

    def __init__(self, graph: Graph, example: Tensor) -> None:
        weights = sum(t.nbytes for t in graph.module.buffers())
        if weights > _LARGEST:
            raise ValueError(f"an ONNX file holds {_LARGEST} bytes, the weights are {weights}")
        batch = torch.export.Dim("batch")
        with _quiet():
            program = torch.onnx.export(
                graph.module,
                (example,),
                dynamo=True,
                verbose=False,
                optimize=False,
                dynamic_shapes=({0: batch},),
            )
        assert program is not None
        self._proto, self._input = program.model_proto, program.model_proto.graph.input[0].name

    def file(self, module: fx.GraphModule) -> bytes:
        """The ONNX file of a graph with its weights."""
        from onnx import ModelProto, numpy_helper

        model, state = ModelProto(), dict(module.named_buffers())
        model.CopyFrom(self._proto)
        for initializer in model.graph.initializer:
            if initializer.name in state:
                array = state[initializer.name].contiguous().numpy()
                initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
        content: bytes = model.SerializeToString()
        return content

    def quantised(self, content: bytes, inputs: Tensor) -> bytes:
        """The file in int8: weights a channel each, activations by the range that `inputs` give.

        Args:
            content: an ONNX file of `file`.
            inputs: what the network reads, of the kind that it will read.
        """
        from onnxruntime import quantization

        with tempfile.TemporaryDirectory(prefix="orch-int8-") as folder, _quiet():
            source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(content)
            quantization.quantize_static(
                source,
                target,
                _calibration(self._input, inputs),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                weight_type=quantization.QuantType.QInt8,
                activation_type=quantization.QuantType.QUInt8,
            )
            return target.read_bytes()


def _calibration(name: str, inputs: Tensor) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(torch.split(inputs, _CALIBRATION_BATCH))

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {name: batch.numpy()}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk to their authors; nothing of it is for whoever starts a server."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
