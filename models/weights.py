"""Reading weights that someone trained, strictly, from files that can't run code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

KeyMap = Callable[[str], str | None]
"""Renames a key of the file to the model's; None drops it."""

TensorMap = Callable[[str, torch.Tensor], Mapping[str, torch.Tensor]]
"""Turns a tensor of the file into the model's: renamed, turned, cut up; none drops it."""

_SHOWN = 10


class WeightsMismatch(ValueError):  # noqa: N818 - what callers catch is a mismatch, not any error
    """A weights file can't be read, or does not fit the model."""


@dataclass(frozen=True)
class Report:
    """What `load_weights` did beyond copying, or `check_weights` found that it would.

    Attributes:
        loaded: tensors that are copied.
        head_replaced: the file's class count when it differs; the head was left as it was.
        stem_summed: whether the first convolution's colours were summed up to one channel.
        adapted: what the model itself changed, a note each.
    """

    loaded: int
    head_replaced: int | None = None
    stem_summed: bool = False
    adapted: tuple[str, ...] = ()

    def __str__(self) -> str:
        notes = [f"{self.loaded} tensors"]
        if self.head_replaced is not None:
            notes.append(f"the head, of {self.head_replaced} classes in the file, starts fresh")
        if self.stem_summed:
            notes.append("the first convolution's three channels are summed up to one")
        notes.extend(self.adapted)
        return "; ".join(notes)


def load_weights(model: nn.Module, path: str | Path, *, key_map: KeyMap | None = None) -> Report:
    """Copies weights from a file into a model, all of them or none.

    Two differences are mended in models that say where their head and stem are, as the zoo's do:
    another class count leaves the model's head as it is, and a first convolution for three
    channels is summed for a model of one, which answers to a grey image as the original does to
    the same image in three equal channels. A model may mend more (`ZooModel.adapt_weights`), such
    as positions of another image size. Anything else is refused.

    Args:
        model: where to; on any device.
        path: a ``.safetensors`` file, or a ``.pth`` or ``.pt`` file with a plain state dict.
        key_map: renames the file's keys; the zoo's models know the published names themselves
            (`StagedModel.key_map`), and layouts (`StagedModel.tensor_map`).

    Raises:
        WeightsMismatch: if the file can't be read, or names or shapes differ.
    """
    state, report = _fitted(model, Path(path), key_map)
    model.load_state_dict({**model.state_dict(), **state})
    return report


def check_weights(model: nn.Module, path: str | Path, *, key_map: KeyMap | None = None) -> Report:
    """Reads a file as `load_weights` does, but copies nothing.

    Args:
        model: what the weights are for; it may be on the meta device.
        path, key_map: as for `load_weights`.

    Raises:
        WeightsMismatch: as `load_weights`.
    """
    return _fitted(model, Path(path), key_map)[1]


def _fitted(
    model: nn.Module, path: Path, key_map: KeyMap | None
) -> tuple[dict[str, torch.Tensor], Report]:
    state = _converted(_read(path), _tensor_map(model, key_map))
    own = model.state_dict()
    adapt = getattr(model, "adapt_weights", None)
    adapted = tuple(adapt(state)) if adapt else ()
    stem_summed = _sum_stem(state, own, getattr(model, "stem_name", None))
    heads: tuple[str, ...] = getattr(model, "head_names", ())
    dropped = [_drop_head(state, own, head) for head in heads]
    head_replaced = next((classes for classes in dropped if classes is not None), None)
    fresh = [head for head, classes in zip(heads, dropped, strict=True) if classes is not None]
    problems = _differences(state, own, fresh)
    if problems:
        raise WeightsMismatch(
            f"{path} does not fit {type(model).__name__}:\n  " + "\n  ".join(problems) + "\n"
            "Choose the model, and its options, that these weights were trained with."
        )
    return state, Report(len(state), head_replaced, stem_summed, adapted)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise WeightsMismatch(
            f"weights must be a .safetensors, .pth or .pt file, but got {path}; "
            "convert it, for example with safetensors.torch.save_file(model.state_dict(), …)"
        )
    if not path.is_file():
        raise WeightsMismatch(f"there is no weights file {path}; check the path")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsMismatch(
            f"{path} can't be read as weights: {_reason(error)}. It is damaged, or something else; "
            "fetch or save it again"
        ) from error
    except Exception as error:  # the unpickler's own errors have no common base
        raise WeightsMismatch(
            f"{path} holds more than tensors, so it is refused: {_reason(error)}. "
            "Save its state_dict() alone"
        ) from error
    return _plain(path, state)


def _plain(path: Path, state: Any) -> dict[str, torch.Tensor]:
    """What a file holds, if that is a state dict."""
    way_out = "save model.state_dict() alone"
    if isinstance(state, Mapping):
        inner = [key for key, value in state.items() if _is_state_dict(value) and value]
        if inner:
            way_out = f"there is one in its entry {inner[0]!r}: save that alone"
    if not _is_state_dict(state):
        raise WeightsMismatch(
            f"{path} must hold a state dict, a mapping from names to tensors; {way_out}"
        )
    odd = [f"{n} ({t.layout})" for n, t in state.items() if t.layout is not torch.strided]
    if odd:
        raise WeightsMismatch(
            f"{path} must hold dense tensors alone; {_listed('others are', odd)[0]}; save those "
            "as dense ones"
        )
    return dict(state)


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and torch.is_tensor(tensor) for name, tensor in value.items()
    )


def _tensor_map(model: nn.Module, key_map: KeyMap | None) -> TensorMap | None:
    if key_map is None and hasattr(model, "tensor_map"):
        known: TensorMap = model.tensor_map  # type: ignore[assignment]
        return known
    renames: KeyMap | None = key_map or getattr(model, "key_map", None)
    if renames is None:
        return None

    def convert(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        renamed = renames(name)
        return {} if renamed is None else {renamed: tensor}

    return convert


def _converted(
    state: Mapping[str, torch.Tensor], tensor_map: TensorMap | None
) -> dict[str, torch.Tensor]:
    if tensor_map is None:
        return dict(state)
    parts = (tensor_map(name, tensor) for name, tensor in state.items())
    return {name: tensor for part in parts for name, tensor in part.items()}


def _sum_stem(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], stem: str | None
) -> bool:
    name = f"{stem}.weight"
    theirs, ours = state.get(name), own.get(name)
    if theirs is None or ours is None or theirs.ndim != 4:
        return False
    if (theirs.shape[1], ours.shape[1]) != (3, 1):
        return False
    state[name] = theirs.sum(1, keepdim=True)
    return True


def _drop_head(
    state: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor], head: str
) -> int | None:
    theirs = state.get(f"{head}.weight")
    if (
        theirs is None
        or theirs.ndim not in (2, 4)
        or theirs.shape[0] == own[f"{head}.weight"].shape[0]
    ):
        return None
    for part in ("weight", "bias"):
        state.pop(f"{head}.{part}", None)
    return theirs.shape[0]


def _differences(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], fresh: list[str]
) -> list[str]:
    # Files from before PyTorch 0.4.1, as many published ones are, count no batches.
    heads = [f"{head}.{part}" for head in fresh for part in ("weight", "bias")]
    optional = (*heads, ".num_batches_tracked")
    missing = [name for name in own if name not in state and not name.endswith(optional)]
    shapes = [
        f"{name} {tuple(state[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    kinds = [
        f"{name} {state[name].dtype} in the file, {own[name].dtype} in the model"
        for name in own
        if name in state and own[name].is_floating_point() and not state[name].is_floating_point()
    ]
    return [
        *_listed("missing from the file", missing),
        *_listed("unknown to the model", sorted(set(state) - set(own))),
        *_listed("of another shape", shapes),
        *_listed("no floating-point numbers", kinds),
    ]


def _listed(what: str, items: list[str]) -> list[str]:
    if not items:
        return []
    more = f", … ({len(items)} in all)" if len(items) > _SHOWN else ""
    return [f"{what}: {', '.join(items[:_SHOWN])}{more}"]


def _reason(error: Exception) -> str:
    """Why a file was not read, without PyTorch's advice to run the code that is in it."""
    text = str(error).strip()
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it needs {found[1]}"
    return re.split(r"\.\s|\n", text or type(error).__name__)[0].rstrip(".")
