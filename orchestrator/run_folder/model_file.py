"""A trained model on disk: `model.safetensors` and the `model.json` that says how to use it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from orchestrator.config.base import find
from orchestrator.config.plugins import load_plugins
from orchestrator.config.user_code import check_importable, use_kept_code
from orchestrator.data.text.tokenizer import Tokenizer
from orchestrator.data.types import DataInfo
from orchestrator.errors import RunFolderError, WeightsError
from orchestrator.files import write_bytes, write_json
from orchestrator.networks import build_network
from orchestrator.run_folder.paths import RunPaths

FORMAT = 1


@dataclass(frozen=True)
class ModelSpec:
    """How to rebuild a trained model and feed it.

    Attributes:
        model: the resolved `model:` section.
        outputs: size of the head.
        shape: (C, H, W) of one image, (T,) of one text, (S, T) of a text and its target text.
        mean, std: per channel, applied to pixels scaled to 0..1; of text none.
        split_digest: which samples the model must not be judged on.
        precision, memory_format: what training resolved `auto` to.
        tokenizer: of text: how it becomes numbers.
        per_token: whether each token has an answer, or the whole text one.
    """

    model: dict[str, Any]
    outputs: int
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    label_names: tuple[str, ...]
    data_digest: str
    split_digest: str
    plugins: tuple[str, ...] = ()
    precision: str = "fp32"
    memory_format: str = "contiguous"
    tokenizer: Tokenizer | None = None
    per_token: bool = False

    @classmethod
    def of(cls, model: dict[str, Any], outputs: int, info: DataInfo, **rest: Any) -> ModelSpec:
        """The specification of a model that was trained on the data that `info` describes."""
        return cls(
            model,
            outputs,
            info.shape,
            info.mean,
            info.std,
            info.label_names,
            info.digest,
            info.split_digest,
            tokenizer=info.tokenizer,
            **rest,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        return {
            "format": FORMAT,
            "model": self.model,
            "outputs": self.outputs,
            "input": {"shape": list(self.shape)},
            "preprocess": self._preprocess(),
            "label_names": list(self.label_names),
            "data_digest": self.data_digest,
            "split_digest": self.split_digest,
            "plugins": list(self.plugins),
            "precision": self.precision,
            "memory_format": self.memory_format,
        }

    def _preprocess(self) -> dict[str, Any]:
        if self.tokenizer is not None:
            return {"tokenizer": self.tokenizer.to_json(), "per_token": self.per_token}
        channels, height, width = self.shape
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": [height, width],
            "channels": channels,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ModelSpec:
        """Reads `model.json`.

        Raises:
            KeyError, TypeError, ValueError: if it is not one.
        """
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not {FORMAT}")
        preprocessing = {"mean", "std", "tokenizer", "per_token"}
        plain = {field.name for field in dataclasses.fields(cls)} - {"shape"} - preprocessing
        values = {name: content[name] for name in plain}
        for name in ("label_names", "plugins"):
            values[name] = tuple(values[name])
        preprocess = content["preprocess"]
        shape = tuple(content["input"]["shape"])
        if "tokenizer" in preprocess:
            tokenizer = Tokenizer.from_json(preprocess["tokenizer"])
            per_token = bool(preprocess["per_token"])
            return cls(
                shape=shape, mean=(), std=(), tokenizer=tokenizer, per_token=per_token, **values
            )
        channels, height, width = shape
        return cls(
            shape=(channels, height, width),
            mean=tuple(preprocess["mean"]),
            std=tuple(preprocess["std"]),
            **values,
        )


def save_model(paths: RunPaths, state: dict[str, Tensor], spec: ModelSpec) -> None:
    """Writes the weights, then the specification, each whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    write_bytes(paths.model, save(tensors))
    write_json(paths.model_json, spec.to_json())


def read_spec(root: Path) -> ModelSpec:
    """Reads a run's `model.json`.

    Raises:
        RunFolderError: if there is none, or it can't be read.
    """
    path = RunPaths(root).model_json
    try:
        return ModelSpec.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise RunFolderError(
            f"{root} has no trained model ({path.name} is missing); "
            "finish the run first, with `orch train … --resume`"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error!r}); train the run again") from None


def load_model(root: Path) -> tuple[nn.Module, ModelSpec]:
    """Rebuilds a run's best model on the CPU, in evaluation mode and fp32.

    Raises:
        RunFolderError: if the run has no model.
        WeightsError: if the weights do not fit the specification.
    """
    spec = read_spec(root)
    use_kept_code(root)
    load_plugins(spec.plugins)
    if spec.model["type"] == "import":
        check_importable(spec.model["target"].partition(":")[0], root)
    section = find("model", spec.model["type"]).config.model_validate(spec.model)
    network = build_network(
        section,  # type: ignore[arg-type]
        outputs=spec.outputs,
        shape=spec.shape,
        vocabulary=None if spec.tokenizer is None else len(spec.tokenizer),
        per_token=spec.per_token,
        load=False,
    )
    path = RunPaths(root).model
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} does not fit {RunPaths(root).model_json}: {error}") from error
    return network.eval(), spec


def model_digest(root: Path) -> str:
    """The sha256 of a run's weights."""
    with RunPaths(root).model.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
