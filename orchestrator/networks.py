"""From a `model:` section to a network: the zoo's, a plugin's, or any importable class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from orchestrator.config.base import build, resolve
from orchestrator.config.model import ImportedModel, Model, misfit
from orchestrator.errors import UserError, WeightsError
from orchestrator.models.registry import create, create_sequence_model
from orchestrator.models.weights import Report, WeightsMismatch, check_weights, load_weights
from orchestrator.optim.names import match_parameters


def build_network(
    section: Model,
    *,
    outputs: int,
    shape: tuple[int, ...],
    vocabulary: int | None = None,
    per_token: bool = False,
    load: bool = True,
    recompute: bool = False,
    tell: Callable[[str], None] = lambda note: None,
) -> nn.Module:
    """The network of a section, on the current default device.

    Args:
        section: the `model:` section.
        outputs: how many outputs the head has.
        shape: (C, H, W) of one image, (T,) of one text, (S, T) of a text and its target text.
        vocabulary: how many tokens there are; None for images. What builds a network is given it,
            and `per_token`, only for texts.
        per_token: whether each token has an answer, or the whole text one.
        recompute: keep few activations for the backward pass and compute the others again.
        load: read `weights` where the section names a file, and freeze what it says.
        tell: called with what was loaded, and what was changed or left out for it.

    Raises:
        WeightsError: if the weights file does not fit.
        UserError: if the section's options are impossible for this input.
    """
    if why := misfit(section, "images" if vocabulary is None else "tokens"):
        raise UserError(f"model: {why}")
    text = {} if vocabulary is None else {"vocabulary": vocabulary, "per_token": per_token}
    try:
        network = build("model", section, outputs=outputs, shape=shape, **text)
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"model {section.type}: {error}") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"model {section.type}: {type(network).__name__} is no torch.nn.Module")
    if load and section.weights:
        report = _weights(load_weights, network, section.weights)
        tell(f"{section.weights}: {report}")
    if load:
        freeze(network, section.freeze)
    if recompute:
        _checkpoint_activations(network, section)
    return network


def describe_weights(network: nn.Module, section: Model) -> str | None:
    """What loading the section's weights file would do, a network of the meta device being enough.

    Returns:
        None where the section names no file.

    Raises:
        WeightsError: if the file does not fit.
    """
    return str(_weights(check_weights, network, section.weights)) if section.weights else None


def _weights(read: Callable[[nn.Module, Path], Report], network: nn.Module, file: str) -> Report:
    try:
        return read(network, Path(file))
    except (WeightsMismatch, OSError) as error:
        raise WeightsError(f"model.weights: {error}") from error


def _checkpoint_activations(network: nn.Module, section: Model) -> None:
    switch = getattr(network, "set_checkpointing", None)
    if switch is None:
        raise UserError(
            f"train.checkpoint_activations needs a model with stages, but {section.type} gives a "
            f"{type(network).__name__} without set_checkpointing; remove it"
        )
    switch(True)


def freeze(network: nn.Module, patterns: tuple[str, ...]) -> None:
    """Stops the parameters that a pattern of names or a stage's name means from learning.

    Raises:
        UserError: for a pattern that matches nothing, naming modules and stages.
    """
    for pattern in patterns:
        for parameter in match_parameters(network, pattern, key="model.freeze").values():
            parameter.requires_grad_(False)


def freeze_until(network: nn.Module, phases: Sequence[Sequence[str]], phase: int) -> None:
    """Stops what begins to learn only after a phase, and has not learnt in an earlier one.

    Args:
        phases: what each phase, from 1, lets learn: patterns of names, or stages' names.
        phase: the present one, from 0.

    Raises:
        UserError: for a pattern that matches nothing.
    """
    learning: set[int] = set()
    for number, patterns in enumerate(phases):
        for pattern in patterns:
            key = f"train.unfreeze[{number}].parameters"
            for parameter in match_parameters(network, pattern, key=key).values():
                if number < phase:
                    learning.add(id(parameter))
                elif id(parameter) not in learning:
                    parameter.requires_grad_(False)


def build_zoo_model(
    section: Model,
    *,
    outputs: int,
    shape: tuple[int, ...],
    vocabulary: int | None = None,
    per_token: bool = False,
) -> nn.Module:
    """Builds one of our own models; options that the file leaves out are the variant's."""
    options = section.model_dump(exclude={"type", "weights", "freeze"}, exclude_none=True)
    if vocabulary is not None:
        return create_sequence_model(
            section.type,
            num_classes=outputs,
            vocabulary=vocabulary,
            length=shape,
            per_token=per_token,
            **options,
        )
    channels, height, width = shape
    return create(
        section.type,
        num_classes=outputs,
        in_channels=channels,
        image_size=(height, width),
        **options,
    )


def build_imported_model(
    section: ImportedModel,
    *,
    outputs: int,
    shape: tuple[int, ...],
    vocabulary: int | None = None,
    per_token: bool = False,
) -> nn.Module:
    """Calls the class that a file names, with the arguments that it gives.

    `$outputs`, and `$channels` of images, `$vocabulary` and `$length` of text, as values stand for
    what the data asks for.
    """
    known: dict[str, Any] = {"$outputs": outputs, "$channels": shape[0]}
    if vocabulary is not None:
        known = {"$outputs": outputs, "$vocabulary": vocabulary, "$length": shape[0]}
    arguments = {
        name: known.get(value, value) if isinstance(value, str) else value
        for name, value in section.args.items()
    }
    network: nn.Module = resolve(section.target)(**arguments)
    return network
