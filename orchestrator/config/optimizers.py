"""Sections that say how parameters are updated."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Part, Seq, part
from orchestrator.config.numbers import Beta, NonNegative

_OPTIMIZERS = "orchestrator.optim.optimizers"


class OptimizerPart(Part):
    """What every optimizer has."""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: NonNegative = 0.0
    decay_norm_and_bias: bool = False
    """Apply weight decay to normalisation layers and biases too."""


@part("optimizer", "sgd", build=f"{_OPTIMIZERS}:sgd")
class Sgd(OptimizerPart):
    """Stochastic gradient descent with momentum."""

    type: Literal["sgd"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    momentum: Beta = 0.9
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum > 0, but got momentum=0")
        return self


class AdamLike(OptimizerPart):
    """What Adam and its kin have."""

    betas: Seq[Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8

    @model_validator(mode="after")
    def _two_betas(self) -> AdamLike:
        if len(self.betas) != 2:
            raise ValueError(f"betas are two numbers, such as [0.9, 0.999], got {self.betas}")
        return self


@part("optimizer", "adam", build=f"{_OPTIMIZERS}:adam")
class Adam(AdamLike):
    """Adam (Kingma and Ba, 2015); weight decay is added to the gradient."""

    type: Literal["adam"] = "adam"


@part("optimizer", "adamw", build=f"{_OPTIMIZERS}:adamw")
class AdamW(AdamLike):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    weight_decay: NonNegative = 0.01


@part("optimizer", "radam", build=f"{_OPTIMIZERS}:radam")
class RAdam(AdamLike):
    """Rectified Adam (Liu et al., 2020)."""

    type: Literal["radam"] = "radam"


@part("optimizer", "nadam", build=f"{_OPTIMIZERS}:nadam")
class NAdam(AdamLike):
    """Adam with Nesterov momentum (Dozat, 2016)."""

    type: Literal["nadam"] = "nadam"
    lr: Annotated[float, Field(gt=0)] = 2e-3


@part("optimizer", "rmsprop", build=f"{_OPTIMIZERS}:rmsprop")
class RMSprop(OptimizerPart):
    """RMSprop (Tieleman and Hinton, 2012)."""

    type: Literal["rmsprop"] = "rmsprop"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    alpha: Beta = 0.99
    momentum: Beta = 0
    eps: Annotated[float, Field(gt=0)] = 1e-8


@part("optimizer", "adagrad", build=f"{_OPTIMIZERS}:adagrad")
class Adagrad(OptimizerPart):
    """Adagrad (Duchi et al., 2011)."""

    type: Literal["adagrad"] = "adagrad"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    eps: Annotated[float, Field(gt=0)] = 1e-10
