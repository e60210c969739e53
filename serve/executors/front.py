"""From a request's inputs to what networks read: one tensor for each member."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.serve.backend import Inputs, Pixels
from orchestrator.serve.images import to_unit
from orchestrator.serve.predictor import (
    EnsemblePredictor,
    Predictor,
    SinglePredictor,
    TextPredictor,
)

_RATES = ("drop", "weights", "freeze")
"""Parts of names of fields that a trained network in evaluation mode does not obey."""


class Front:
    """The members of a predictor, and what each of them reads.

    Args:
        predictor: one network, or an ensemble of them, for images or for texts.

    Attributes:
        networks: the members', in fp32.
        weights: one a member; they sum to 1.
    """

    def __init__(self, predictor: Predictor | TextPredictor) -> None:
        self.card = predictor.card
        members: tuple[object, ...] = (predictor,)
        self.weights = [1.0]
        if isinstance(predictor, EnsemblePredictor):
            members, self.weights = predictor.members, list(predictor.weights)
        self._texts = [one for one in members if isinstance(one, TextPredictor)]
        self._images = [one for one in members if isinstance(one, SinglePredictor)]
        # Members that were trained on the same data share mean and std, or tokens: computed once.
        scales = [(one.spec.mean, one.spec.std) for one in self._images]
        self._scales = [(_column(mean), _column(std)) for mean, std in dict.fromkeys(scales)]
        self._scale_of = [list(dict.fromkeys(scales)).index(scale) for scale in scales]
        tokenizers = [one.tokenizer for one in self._texts]
        self._reader_of = [tokenizers.index(one) for one in tokenizers]

    @property
    def networks(self) -> list[nn.Module]:
        """One a member."""
        members: list[SinglePredictor | TextPredictor] = [*self._images, *self._texts]
        return [one.network for one in members]

    @property
    def architectures(self) -> list[str]:
        """One text a member; members with the same one differ in their weights alone."""
        if self._texts:  # what reads tokens runs by itself
            return [str(number) for number in range(len(self._texts))]
        return [_architecture(one.spec) for one in self._images]

    def whole(self) -> nn.Module | None:
        """The only member with its scaling and the softmax: pixels in 0..1 to probabilities.

        None for several members, and for texts.
        """
        if len(self._images) != 1:
            return None
        return _Whole(self._images[0].network, *self._scales[0])

    @property
    def same_inputs(self) -> bool:
        """Whether all members read the same numbers."""
        return len(self._scales) <= 1 and len(set(self._reader_of)) <= 1

    def __call__(self, inputs: Inputs) -> list[Tensor]:
        """What each member reads: float32[B, C, H, W], or int64[B, T]; on the CPU."""
        if self._texts:
            texts = [str(text) for text in inputs]
            tokens = {one: self._texts[one].tokens(texts) for one in set(self._reader_of)}
            return [tokens[one] for one in self._reader_of]
        pixels = _unit(inputs)  # type: ignore[arg-type]
        scaled = [(pixels - mean).div_(std) for mean, std in self._scales]
        return [scaled[number] for number in self._scale_of]


class _Whole(nn.Module):
    """A network between its scaling and the softmax."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        # By these names: an ONNX file knows operations and tensors in one space of names.
        self.register_buffer("pixel_mean", mean)
        self.register_buffer("pixel_std", std)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Probabilities float32[B, classes]."""
        logits: Tensor = self.network((pixels_BCHW - self.pixel_mean) / self.pixel_std)
        return logits.softmax(1)


def _unit(pixels: Pixels) -> Tensor:
    """As `to_unit` does, in half the time of NumPy's way for one small image."""
    if pixels.dtype == np.uint8 and pixels.flags.writeable:
        return torch.from_numpy(pixels).to(torch.float32).div_(255)
    return torch.from_numpy(to_unit(pixels))


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1)


def _architecture(spec: Any) -> str:
    section = {k: v for k, v in spec.model.items() if not any(part in k for part in _RATES)}
    return json.dumps([section, spec.outputs, spec.shape], sort_keys=True)
