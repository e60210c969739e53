"""Augmentation of whole batches on tensors, with draws per sample, for any number of channels."""

from orchestrator.data.augment.canvas import Augmentation, Canvas, Mixer
from orchestrator.data.augment.geometry import Affine, Crop, Flip, rotate
from orchestrator.data.augment.mixing import CutMix, Mixup
from orchestrator.data.augment.photometric import ColorJitter, Erase
from orchestrator.data.augment.pipeline import Normalize, Pipeline
from orchestrator.data.augment.randaugment import RandAugment

__all__ = [
    "Affine",
    "Augmentation",
    "Canvas",
    "ColorJitter",
    "Crop",
    "CutMix",
    "Erase",
    "Flip",
    "Mixer",
    "Mixup",
    "Normalize",
    "Pipeline",
    "RandAugment",
    "rotate",
]
