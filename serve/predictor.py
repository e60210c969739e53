"""A trained model or ensemble as a function from pixels, or texts, to probabilities.

`orch predict` and the server both use it, so their numbers agree. Weights and arithmetic are
fp32. Pixels come scaled to 0..1; each model applies the mean and std it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator.analysis.grad_cam import NoMapError, grad_cam
from orchestrator.data.text.rows import rows
from orchestrator.data.text.tokenizer import Tokenizer
from orchestrator.errors import RunFolderError
from orchestrator.run_folder.ensemble_file import read_ensemble
from orchestrator.run_folder.model_file import ModelSpec, load_model
from orchestrator.run_folder.paths import RunPaths
from orchestrator.serve.backend import Inputs
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.images import to_unit

CHUNK = 64
"""Samples in one forward pass at most, so that a large request needs no more memory."""


class Predictor(Protocol):
    """A model that answers."""

    card: ModelCard

    def predict(self, pixels: Tensor) -> Tensor:
        """Class probabilities.

        Args:
            pixels: float32[B, C, H, W] in 0..1.

        Returns:
            float32[B, classes] on the CPU; each row sums to 1.
        """
        ...

    def explain(self, pixels: Tensor, label: int) -> Tensor:
        """Where one image speaks for a label; see `grad_cam`.

        Args:
            pixels: float32[C, H, W] in 0..1.
            label: a class number.

        Returns:
            float32[H, W] in 0..1 on the CPU.

        Raises:
            NoMapError: if no network has a map of places.
        """
        ...


class SinglePredictor:
    """One network with its own preprocessing.

    Args:
        network: gives logits float32[B, classes].
        spec: shape, mean, std and label names it was trained with.
        name: what clients call it.
        device: where it computes.

    Raises:
        RunFolderError: if the network reads text.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        name: str,
        device: torch.device | str = "cpu",
        version: str = "1",
    ) -> None:
        if spec.tokenizer is not None:
            raise RunFolderError(f"{name} reads text, so it answers to .txt files, not to images")
        self.card = ModelCard(name, spec.shape, spec.label_names, version=version)
        self.spec = spec
        self._device = torch.device(device)
        # Channels-last convolutions are the faster ones, and give the same sums.
        self._network = network.eval().to(self._device)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(spec.mean, device=self._device).view(-1, 1, 1)
        self._std = torch.tensor(spec.std, device=self._device).view(-1, 1, 1)

    def predict(self, pixels: Tensor) -> Tensor:
        """Softmax of the network's logits; see `Predictor.predict`."""
        return self.logits(pixels).softmax(1)

    @property
    def network(self) -> nn.Module:
        """What gives logits float32[B, classes] of normalised pixels; fp32, channels last."""
        return self._network

    @torch.inference_mode()
    def logits(self, pixels: Tensor) -> Tensor:
        """Logits float32[B, classes] on the CPU of pixels float32[B, C, H, W] in 0..1."""
        return torch.cat([self._forward(part) for part in torch.split(pixels, CHUNK)])

    def explain(self, pixels: Tensor, label: int) -> Tensor:
        """Grad-CAM of the network; see `Predictor.explain`."""
        labels = torch.tensor([label], device=self._device)
        return grad_cam(self._network, self._normalized(pixels[None]), labels)[0].cpu()

    def _forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self._network(self._normalized(pixels))
        return logits.float().cpu()

    def _normalized(self, pixels: Tensor) -> Tensor:
        x_BCHW = (pixels.to(self._device) - self._mean) / self._std
        return x_BCHW.contiguous(memory_format=torch.channels_last)


class EnsemblePredictor:
    """The weighted mean of its members' probabilities, or the softmax of that of their logits.

    Args:
        members: all read images, or all texts, of the same shape, and know the same labels.
        weights: one a member, at least one above 0; scaled to sum to 1.
        combine: ``probabilities`` or ``logits``.
        name: what clients call it.

    Raises:
        RunFolderError: if the members do not fit together.
    """

    def __init__(
        self,
        members: Sequence[SinglePredictor] | Sequence[TextPredictor],
        weights: Sequence[float],
        combine: str,
        name: str,
        version: str = "1",
    ) -> None:
        first = members[0].card
        for card in (member.card for member in members):
            if card.reads != first.reads:
                raise RunFolderError(
                    "members of an ensemble must read the same, but "
                    f"{card.name} reads {card.reads}s, {first.name} {first.reads}s"
                )
            if (card.shape, card.label_names) != (first.shape, first.label_names):
                raise RunFolderError(
                    "members of an ensemble must share input shape and label names, but "
                    f"{card.name} has {card.shape} and {len(card.label_names)} labels, "
                    f"{first.name} {first.shape} and {len(first.label_names)}"
                )
        self.card = ModelCard(
            name, first.shape, first.label_names, len(members), combine, version, first.reads
        )
        self._members: tuple[SinglePredictor | TextPredictor, ...] = tuple(members)
        self._weights = [weight / sum(weights) for weight in weights]

    @property
    def members(self) -> tuple[SinglePredictor | TextPredictor, ...]:
        """The networks that answer together."""
        return self._members

    @property
    def weights(self) -> list[float]:
        """One a member; they sum to 1."""
        return self._weights

    @torch.inference_mode()
    def predict(self, inputs: Any) -> Tensor:
        """The members' weighted answer to what each of them reads; see their `predict`."""
        logits_MBK = torch.stack([member.logits(inputs) for member in self._members])
        weights_M11 = torch.tensor(self._weights).view(-1, 1, 1)
        if self.card.combine == "logits":
            return (weights_M11 * logits_MBK).sum(0).softmax(1)
        return (weights_M11 * logits_MBK.softmax(2)).sum(0)

    def explain(self, pixels: Tensor, label: int) -> Tensor:
        """The members' maps, each with its weight; those without one are left out."""
        total, error = torch.zeros(pixels.shape[1:]), NoMapError("the ensemble has no members")
        found = 0.0
        for weight, member in zip(self._weights, self._members, strict=True):
            if isinstance(member, TextPredictor):
                continue
            try:
                total += weight * member.explain(pixels, label)
                found += weight
            except NoMapError as missing:
                error = missing
        if not found:
            raise error
        top = float(total.max())
        return total / top if top > 0 else total


class TextPredictor:
    """One network that gives a label to a text, with its own tokenizer.

    Args:
        network: gives logits float32[B, classes] for tokens int64[B, T].
        spec: length, tokenizer and label names it was trained with.
        name, version: what clients call it.
        device: where it computes.

    Raises:
        RunFolderError: if the network answers with tokens, not with a label.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        name: str,
        device: torch.device | str = "cpu",
        version: str = "1",
    ) -> None:
        if spec.tokenizer is None or spec.per_token:
            raise RunFolderError(
                f"{name} answers with a token for each token, and only models that give one label "
                "to an input are served; ask it in Python with `orchestrator.predict`"
            )
        self.card = ModelCard(name, spec.shape, spec.label_names, version=version, reads="text")
        self._device, self._tokenizer = torch.device(device), spec.tokenizer
        self._network = network.eval().to(self._device)

    @property
    def network(self) -> nn.Module:
        """What gives logits float32[B, classes] of tokens int64[B, T]."""
        return self._network

    @property
    def tokenizer(self) -> Tokenizer:
        """What makes tokens of texts."""
        return self._tokenizer

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """int64[B, T] on the CPU of B texts."""
        return torch.from_numpy(rows(self._tokenizer, texts, self.card.shape[0]).tokens).long()

    def predict(self, texts: Sequence[str]) -> Tensor:
        """Class probabilities float32[B, classes] on the CPU of B texts."""
        return self.logits(texts).softmax(1)

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """Logits float32[B, classes] on the CPU of B texts."""
        parts = [
            self._network(part.to(self._device)).float().cpu()
            for part in torch.split(self.tokens(texts), CHUNK)
        ]
        return torch.cat(parts)


def load_any(
    root: Path, name: str = "", device: torch.device | str = "cpu", version: str = "1"
) -> Predictor | TextPredictor:
    """Loads what answers for a run, student or ensemble folder, of images or of texts.

    Args:
        root: a folder with `model.json` or `ensemble.json`; see `targets.find_served` for sweeps.
        name, version: what clients call it; by default the folder's name.
        device: where it computes.

    Raises:
        RunFolderError: if there is no model, or an ensemble's member is missing or was changed.
        WeightsError: if weights do not fit their specification.
    """
    name = name or root.name
    if RunPaths(root).kind != "ensemble":
        return _load_one(root, name, device, version)
    ensemble = read_ensemble(root)
    members: list[Any] = [
        _load_one(member.path, member.path.name, device) for member in ensemble.members
    ]
    weights = [member.weight for member in ensemble.members]
    return EnsemblePredictor(members, weights, ensemble.combine, name, version)


def _load_one(
    root: Path, name: str, device: torch.device | str, version: str = "1"
) -> SinglePredictor | TextPredictor:
    network, spec = load_model(root)
    kind = SinglePredictor if spec.tokenizer is None else TextPredictor
    return kind(network, spec, name, device, version)


def load_predictor(
    root: Path, name: str = "", device: torch.device | str = "cpu", version: str = "1"
) -> Predictor:
    """Loads what answers about images; see `load_any`.

    Raises:
        RunFolderError: if it reads text.
    """
    found = load_any(root, name, device, version)
    if isinstance(found, TextPredictor) or found.card.reads == "text":
        raise RunFolderError(
            f"{found.card.name} reads text, so it answers to .txt files, not to images"
        )
    return found


def answers_to(predictor: Predictor | TextPredictor, inputs: Inputs) -> Tensor:
    """Class probabilities float32[B, classes] of what clients send, on the CPU."""
    asked: Any = predictor
    if predictor.card.reads == "text":
        return asked.predict([str(text) for text in inputs])  # type: ignore[no-any-return]
    return asked.predict(torch.from_numpy(to_unit(inputs)))  # type: ignore[no-any-return,arg-type]
