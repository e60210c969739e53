"""What every training image goes through: augmentations, normalisation, mixing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from orchestrator.config.base import Part, build
from orchestrator.data.augment.canvas import Augmentation, Canvas, Mixer
from orchestrator.data.augment.photometric import Erase
from orchestrator.data.types import DataInfo
from orchestrator.errors import DataError


class Normalize:
    """Scales uint8 to 0..1, then subtracts the mean and divides by the standard deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        spread = torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * spread)).float()[:, None, None]
        self._shift = (-torch.tensor(mean, dtype=torch.float64) / spread).float()[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8[B, C, H, W] to float32."""
        scale, shift = self._scale.to(images.device), self._shift.to(images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)


class Pipeline:
    """Augmentations in the order of the file, then normalisation, then mixing.

    Args:
        parts: sections of `data.augment`, or parts that are built already.
        info: the data that they are for: mean, standard deviation, number of classes.
    """

    def __init__(self, parts: Sequence[Part | Augmentation | Mixer], info: DataInfo) -> None:
        built = [build("augmentation", p) if isinstance(p, Part) else p for p in parts]
        self._samples = [part for part in built if isinstance(part, Augmentation)]
        self._mixers = [part for part in built if isinstance(part, Mixer)]
        for part in built:
            if not isinstance(part, Augmentation | Mixer):
                raise DataError(
                    f"data.augment: {part!r} must derive from orchestrator.data.augment's "
                    "Augmentation or Mixer"
                )
            if isinstance(part, Erase):
                part.mean = info.mean
        self.normalize = Normalize(info.mean, info.std)
        self._classes = info.classes

    def __call__(
        self, images: Tensor, labels: Tensor, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Augments a batch: see `apply`, with labels as the only target."""
        images, targets = self.apply(images, {"label": labels}, generator)
        return images, targets["label"]

    def apply(
        self, images: Tensor, targets: Mapping[str, Tensor], generator: Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Augments a batch.

        Args:
            images: uint8[B, C, H, W].
            targets: by name; `label` is int64[B].
            generator: on the CPU; every draw comes from it.

        Returns:
            float32[B, C, H, W], and the targets. Where samples were mixed `label` is
            float32[B, classes], and every other target of floating point is blended with the
            same shares.

        Raises:
            DataError: if samples are mixed and another target holds integers.
        """
        targets = dict(targets)
        if not len(images):
            return self.normalize(images), self._soft(targets) if self._mixers else targets
        canvas = Canvas(images)
        for part in self._samples:
            part.apply(canvas, generator)
        pixels = self.normalize(canvas.pixels)
        for mixer in self._mixers:
            pixels, partner, share = mixer.mix(pixels, generator)
            targets = {
                name: _mixed(target, partner, share) for name, target in self._soft(targets).items()
            }
        return pixels, targets

    def _soft(self, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        label = targets["label"]
        if not label.is_floating_point():
            targets = {**targets, "label": F.one_hot(label, self._classes).float()}
        whole = [name for name, target in targets.items() if not target.is_floating_point()]
        if whole:
            raise DataError(
                f"data.augment: mixup and cutmix can't blend target {whole[0]!r}, which holds "
                "integers; remove them"
            )
        return targets


def _mixed(target: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    weight = share.view(-1, *(1,) * (target.ndim - 1)).to(target.dtype)
    return torch.lerp(target[partner], target, weight)
