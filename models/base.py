"""What every model of the zoo can do, given its stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import nn

from .stages import Stage, belongs, run_stages

Head = nn.Linear | nn.Conv2d
"""What gives logits: a linear layer, or a 1×1 convolution."""

MIN_SIDE = 8
"""The smallest image side, in pixels, that the zoo takes."""


class StagedModel(nn.Module):
    """A network that is cut into stages, the last of which is its head.

    A family sets `head_name` and `stem_name`, implements `stages`, and inherits the rest.

    In training mode a model with auxiliary heads returns a tuple: its logits, then theirs. In
    evaluation mode every model returns its logits alone.

    Attributes:
        head_name: path of the last linear layer or 1×1 convolution, such as ``fc``.
        stem_name: path of the first convolution, such as ``conv1``; None where there is none.
        num_classes: length of the logits.
    """

    head_name: ClassVar[str]
    stem_name: ClassVar[str | None]

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = at_least("num_classes", num_classes, 1, "classes of the data")
        self._checkpointing = False

    def stages(self) -> list[Stage]:
        """The steps whose composition is `forward`; they refer to modules and own none."""
        raise NotImplementedError

    @staticmethod
    def key_map(name: str) -> str | None:
        """Renames a key of the published weights to ours; None drops it. By default they agree."""
        return name

    def tensor_map(self, name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """Turns a published tensor into ours: none, or several, where one alone is not renamed.

        By default it is renamed by `key_map`.
        """
        renamed = self.key_map(name)
        return {} if renamed is None else {renamed: tensor}

    def adapt_weights(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Mends, in place, what may differ in weights trained elsewhere, such as image sizes.

        Args:
            state: a file's tensors under our names.

        Returns:
            A note on each change, for the report.
        """
        return []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] to logits [N, classes]."""
        return run_stages(self.stages(), x, recompute=self._checkpointing)  # type: ignore[no-any-return]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images to what the head takes: every stage but the last."""
        return run_stages(self.stages()[:-1], x, recompute=self._checkpointing)  # type: ignore[no-any-return]

    def forward_head(self, features: torch.Tensor) -> torch.Tensor:
        """The last stage: features to logits [N, classes]."""
        return self.stages()[-1].fn(features)  # type: ignore[no-any-return]

    def forward_taps(
        self, x: torch.Tensor, taps: Iterable[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits, and what stages put out on the way.

        Args:
            x: images [N, C, H, W].
            taps: stage names; a group's name, such as ``layer1``, means its last block.

        Raises:
            ValueError: for a name that no stage has.
        """
        stages = self.stages()
        wanted: dict[str, list[str]] = {}
        for tap in taps:
            wanted.setdefault(_last_of(stages, tap), []).append(tap)
        found: dict[str, torch.Tensor] = {}
        for stage in stages:
            x = run_stages([stage], x, recompute=self._checkpointing)
            features = x if torch.is_tensor(x) else x[0]  # auxiliary heads' logits follow
            found.update(dict.fromkeys(wanted.get(stage.name, ()), features))
        return x, found

    def reset_head(self, num_classes: int) -> None:
        """Replaces the layers that give logits by fresh ones, on the old ones' device and dtype."""
        self.num_classes = at_least("num_classes", num_classes, 1, "classes of the data")
        for path in self.head_names:
            old = self.get_submodule(path)
            like = {
                "bias": old.bias is not None,
                "device": old.weight.device,
                "dtype": old.weight.dtype,
            }
            fresh: Head
            if isinstance(old, nn.Conv2d):
                fresh = nn.Conv2d(old.in_channels, num_classes, 1, **like)  # type: ignore[arg-type]
            else:
                fresh = nn.Linear(old.in_features, num_classes, **like)  # type: ignore[arg-type]
            parent, _, name = path.rpartition(".")
            setattr(self.get_submodule(parent), name, fresh)
            self.init_head(fresh)

    @property
    def head_names(self) -> tuple[str, ...]:
        """Paths of every layer that gives logits: the head's, then the auxiliary ones'."""
        return (self.head_name,)

    @property
    def head_layer(self) -> Head:
        """The head's last layer."""
        layer = self.get_submodule(self.head_name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        return layer

    def init_head(self, layer: Head) -> None:
        """Initialises a fresh head; PyTorch's own initialisation unless a family has another."""

    def set_checkpointing(self, enabled: bool) -> None:
        """Trades time for memory: stages' inner activations are computed again in backward."""
        self._checkpointing = enabled


class ZooModel(StagedModel):
    """A classifier of images.

    Attributes:
        in_channels: channels of the input.
        image_size: (height, width), in pixels, that the model was built for.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int | tuple[int, int]):
        super().__init__(num_classes)
        self.in_channels = at_least("in_channels", in_channels, 1, "channels of the data")
        self.image_size = square(image_size)


def square(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one side or both.

    Raises:
        ValueError: if a side is not a whole number of at least `MIN_SIDE` pixels.
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, int) and s >= MIN_SIDE for s in sides):
        raise ValueError(
            f"image_size must be one or two whole numbers >= {MIN_SIDE}, but got {size!r}; "
            "resize or pad the images"
        )
    return sides[0], sides[1]


def choose_stem(stem: str, image_size: tuple[int, int]) -> str:
    """Resolves ``auto``: `small`, which halves nothing, up to 64 pixels, else `imagenet`.

    Raises:
        ValueError: for any other word.
    """
    if stem not in ("auto", "imagenet", "small"):
        raise ValueError(f"stem must be auto, imagenet or small, but got {stem!r}")
    if stem == "auto":
        return "small" if max(image_size) <= 64 else "imagenet"
    return stem


def check_positive(**values: float) -> None:
    """Refuses multipliers that are not above 0.

    Raises:
        ValueError: naming the first wrong one.
    """
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a number above 0, but got {value!r}; 1.0 is as is")


def check_rates(**values: float) -> None:
    """Refuses drop rates outside [0, 1).

    Raises:
        ValueError: naming the first wrong one.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), but got {value!r}; 0 turns it off")


def at_least(name: str, value: int, low: int, what: str) -> int:
    """Returns a whole number.

    Raises:
        ValueError: if it is none, or below `low`; the message says `what` it is.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, but got {value!r}: it is {what}")
    return value


def _last_of(stages: list[Stage], name: str) -> str:
    matching = [stage.name for stage in stages if belongs(stage.name, name)]
    if not matching:
        known = ", ".join(stage.name for stage in stages)
        raise ValueError(f"no stage is named {name!r}; choose from: {known}")
    return matching[-1]
