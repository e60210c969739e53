"""Sections that say how parameters are updated."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Config, Part, Seq, part
from orchestrator.config.numbers import Beta, NonNegative, Positive

_OPTIMIZERS = "orchestrator.optim.optimizers"


class ParameterGroup(Config):
    """Parameters that are updated in a way of their own."""

    parameters: Annotated[Seq[str], Field(min_length=1)]
    """Patterns of parameter names, such as `head.*`, or names of the model's stages."""
    lr_scale: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate relative to the others'."""
    weight_decay: NonNegative | None = None
    """In place of the optimizer's; it then holds for the group's norms and biases too."""


class OptimizerPart(Part):
    """What every optimizer has.

    Attributes:
        whole_tensors: why the update needs each parameter in one piece, which ZeRO cuts up; empty
            where it does not.
    """

    whole_tensors: ClassVar[str] = ""

    lr: Annotated[float, Field(gt=0)] = 1e-3
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """How `lr` grows with `train.batch_size`: `linear` multiplies it by batch_size / base_batch
    (Goyal et al., 2017, section 2.1), `sqrt` by the root of that (You et al., 2020)."""
    base_batch: Positive = 256
    """The batch size that `lr` is meant for, where `scale_lr` is set."""
    weight_decay: NonNegative = 0.0
    decay_norm_and_bias: bool = False
    """Apply weight decay to normalisation layers and biases too."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Learning rate of stage l of L is lr · layer_decay^(L−l), so that early layers learn slowest
    (Howard and Ruder, 2018, section 3.2)."""
    groups: Seq[ParameterGroup] = ()
    """Parameters with a rate or decay of their own; the first group that matches counts."""


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

    whole_tensors: ClassVar[str] = "DeepSpeed builds it anew, without its groups and rates"

    type: Literal["adagrad"] = "adagrad"
    lr: Annotated[float, Field(gt=0)] = 1e-2
    eps: Annotated[float, Field(gt=0)] = 1e-10


@part("optimizer", "lamb", build=f"{_OPTIMIZERS}:lamb")
class Lamb(AdamLike):
    """LAMB for large batches (You et al., 2020, algorithm 2, without bias correction)."""

    whole_tensors: ClassVar[str] = "it compares each layer's norm with its update's"

    type: Literal["lamb"] = "lamb"
    eps: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: NonNegative = 0.01


@part("optimizer", "lars", build=f"{_OPTIMIZERS}:lars")
class Lars(OptimizerPart):
    """LARS for large batches (You et al., 2017); vectors are updated as SGD updates them."""

    whole_tensors: ClassVar[str] = "it compares each layer's norm with its gradient's"

    type: Literal["lars"] = "lars"
    lr: Annotated[float, Field(gt=0)] = 1.0
    momentum: Beta = 0.9
    nesterov: bool = False
    trust: Annotated[float, Field(gt=0)] = 1e-3
    """η: the share of a layer's norm by which one step may change it."""
