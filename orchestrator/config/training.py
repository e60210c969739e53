"""Sections that say how one run trains: task, loss, optimizer, schedule, engine, scale, …"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Config, OneOf, Part, Seq, part
from orchestrator.config.duration import Duration

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
MetricName = Annotated[str, Field(pattern=r"^[a-z_]+/[A-Za-z0-9_@.-]+$")]


# --- loss and task -------------------------------------------------------------------------


@part("loss", "cross_entropy", build="orchestrator.losses:cross_entropy")
class CrossEntropy(Part):
    """Cross entropy of the softmax, with label smoothing (Szegedy et al., 2016, section 7)."""

    type: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0


@part("loss", "focal", build="orchestrator.losses:focal")
class Focal(Part):
    """Focal loss −(1−p)^γ log p (Lin et al., 2017)."""

    type: Literal["focal"] = "focal"
    gamma: NonNegative = 2.0


@part("soft_loss", "kl", build="orchestrator.losses:kl_divergence")
class KlDivergence(Part):
    """The divergence from the teacher's softened probabilities (Hinton et al., 2015)."""

    type: Literal["kl"] = "kl"


@part("soft_loss", "decoupled", build="orchestrator.losses:decoupled")
class Decoupled(Part):
    """The same in two terms with weights of their own (Zhao et al., 2022)."""

    type: Literal["decoupled"] = "decoupled"
    target: NonNegative = 1.0
    """α: weight of how sure the teacher is of the label."""
    rest: NonNegative = 1.0
    """β: weight of what it says of the other classes."""


@part("task", "classify", build="orchestrator.tasks.classify:Classify")
class ClassifyTask(Part):
    """One label per sample."""

    type: Literal["classify"] = "classify"
    loss: Annotated[Part, OneOf("loss")] = CrossEntropy()
    auxiliary_weight: NonNegative = 0.3
    """Weight of each auxiliary head's loss, in networks that have them."""


@part("task", "language_model", build="orchestrator.tasks.language_model:LanguageModel")
class LanguageModelTask(Part):
    """The next token at each place of a running text."""

    type: Literal["language_model"] = "language_model"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0


@part(
    "task",
    "sequence_to_sequence",
    build="orchestrator.tasks.sequence_to_sequence:SequenceToSequence",
)
class SequenceToSequenceTask(Part):
    """A text that answers a text, learnt with the right answer's beginning as input."""

    type: Literal["sequence_to_sequence"] = "sequence_to_sequence"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0
    bleu: bool = True
    """Answer every evaluated text greedily, token by token, and compare by BLEU; takes time."""


TeacherSees = Literal["augmented", "plain"]
"""What the teacher is asked about: each image as the student sees it, at the price of the teacher's
forward pass in every step; or, once, the image as it is stored."""


@part("task", "distill", build="orchestrator.tasks.distill:Distill")
class DistillTask(Part):
    """Learns a teacher's softened probabilities beside the labels (Hinton et al., 2015)."""

    type: Literal["distill"] = "distill"
    teacher: str
    """Folder of a run, an ensemble, or a sweep, whose ensemble teaches."""
    temperature: Annotated[float, Field(gt=0)] = 4.0
    soft_weight: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Weight of the teacher's term; the labels' term gets the rest."""
    teacher_sees: TeacherSees = "augmented"
    soft_loss: Annotated[Part, OneOf("soft_loss")] = KlDivergence()
    loss: Annotated[Part, OneOf("loss")] = CrossEntropy()
    auxiliary_weight: NonNegative = 0.3


# --- optimizer -----------------------------------------------------------------------------

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


# --- schedule ------------------------------------------------------------------------------

_SCHEDULES = "orchestrator.optim.schedules"
NO_WARMUP = Duration(0, "steps")


class SchedulePart(Part):
    """What every schedule has."""

    warmup: Duration = NO_WARMUP
    """Linear rise of the learning rate from zero before the schedule proper."""


@part("schedule", "constant", build=f"{_SCHEDULES}:constant")
class Constant(SchedulePart):
    """The same learning rate throughout."""

    type: Literal["constant"] = "constant"


@part("schedule", "cosine", build=f"{_SCHEDULES}:cosine")
class Cosine(SchedulePart):
    """Half a cosine from the optimizer's rate to `final` times it (Loshchilov, Hutter, 2017)."""

    type: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0, le=1)] = 0


@part("schedule", "one_cycle", build=f"{_SCHEDULES}:one_cycle")
class OneCycle(SchedulePart):
    """Cosine up to the optimizer's rate during `warmup`, cosine down after (Smith, 2018)."""

    type: Literal["one_cycle"] = "one_cycle"
    warmup: Duration = Duration(30, "%")
    start: Annotated[float, Field(gt=0, le=1)] = 0.04
    """First rate, as a share of the highest."""
    final: Annotated[float, Field(ge=0, le=1)] = 4e-6
    """Last rate, as a share of the highest."""


@part("schedule", "polynomial", build=f"{_SCHEDULES}:polynomial")
class Polynomial(SchedulePart):
    """Falls as (1 − t)^power to `final` times the optimizer's rate; power 1 is linear."""

    type: Literal["polynomial"] = "polynomial"
    power: Annotated[float, Field(gt=0)] = 1
    final: Annotated[float, Field(ge=0, le=1)] = 0


@part("schedule", "exponential", build=f"{_SCHEDULES}:exponential")
class Exponential(SchedulePart):
    """Multiplies the rate by `gamma` once an epoch, smoothly."""

    type: Literal["exponential"] = "exponential"
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.95


@part("schedule", "step", build=f"{_SCHEDULES}:step")
class StepSchedule(SchedulePart):
    """Multiplies the rate by `gamma` after each `every`."""

    type: Literal["step"] = "step"
    every: Duration = Duration(30, "epochs")
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


@part("schedule", "multistep", build=f"{_SCHEDULES}:multistep")
class MultiStep(SchedulePart):
    """Multiplies the rate by `gamma` at each milestone."""

    type: Literal["multistep"] = "multistep"
    milestones: Seq[Duration]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


# --- engine --------------------------------------------------------------------------------


@part("engine", "plain", build="orchestrator.engine.plain:PlainEngine")
class PlainEngineConfig(Part):
    """PyTorch itself; several workers synchronise gradients as DistributedDataParallel does."""

    type: Literal["plain"] = "plain"


@part("engine", "deepspeed", build="orchestrator.engine.deepspeed:DeepSpeedEngine")
class DeepSpeedEngineConfig(Part):
    """DeepSpeed with ZeRO (Rajbhandari et al., 2020)."""

    type: Literal["deepspeed"] = "deepspeed"
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    """0 replicates; 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    persist_below: Annotated[int, Field(ge=0)] = 100_000
    """Stage 3 keeps parameters with fewer elements than this whole on every worker."""


class ScaleConfig(Config):
    """How many workers one run has, and what each of them gets."""

    workers: Positive = 1
    cpus: Literal["auto"] | Positive = "auto"
    """CPU cores (and PyTorch threads) of each worker; `auto` gives one run all of a machine's,
    and a sweep's trial one."""
    gpus: Literal["auto"] | NonNegative = "auto"
    """GPUs of each worker; `auto` takes one where there is one."""


class EarlyStoppingConfig(Config):
    """Stops when the monitored metric no longer improves."""

    patience: Positive = 3
    """Evaluations without improvement before the run stops."""
    min_delta: NonNegative = 0


class TrainConfig(Config):
    """How long and in what portions."""

    duration: Annotated[Duration, Field(alias="for")] = Duration(1, "epochs")
    batch_size: Positive = 128
    """Samples of one optimizer step, over all workers."""
    micro_batch: Literal["auto"] | Positive = "auto"
    """Samples of one forward pass; the rest of a batch is accumulated."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """`auto` measures fp32 and bf16 on this hardware and keeps the faster."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest global L2 norm of the gradient."""
    early_stopping: EarlyStoppingConfig | None = None
    log_every: Positive = 50
    """Optimizer steps between two lines of training loss."""

    @model_validator(mode="after")
    def _absolute_duration(self) -> TrainConfig:
        if self.duration.unit == "%" or self.duration.value == 0:
            raise ValueError(f"for: must be steps or epochs above 0, got '{self.duration}'")
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch_size:
            raise ValueError(
                "micro_batch <= batch_size must hold, "
                f"but got micro_batch={self.micro_batch}, batch_size={self.batch_size}"
            )
        return self


class EvaluateConfig(Config):
    """When the val split is evaluated, and which metric decides."""

    every: Duration = Duration(1, "epochs")
    monitor: MetricName = "val/accuracy"
    mode: Literal["max", "min"] = "max"
    batch_size: Positive = 512


class CheckpointConfig(Config):
    """When state is saved, and how many checkpoints stay."""

    every: Duration = Duration(1, "epochs")
    keep_last: Positive = 2
    keep_best: Annotated[int, Field(ge=0)] = 1


class WandbConfig(Config):
    """Weights & Biases. `auto` is online where a key is found, offline otherwise."""

    project: str = "orch"
    entity: str | None = None
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    tags: Seq[str] = ()


class TrackConfig(Config):
    """Who is told about metrics, besides the run folder."""

    wandb: WandbConfig | None = None
