"""Sections that say how one run trains: task, loss, scale, lengths, …"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Config, OneOf, Part, Seq, part
from orchestrator.config.duration import Duration
from orchestrator.config.numbers import Beta, NonNegative, Positive

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


# --- scale, lengths, tracking --------------------------------------------------------------


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


class EmaConfig(Config):
    """Evaluate and export an exponential moving average of the weights."""

    decay: Beta = 0.999
    """Share of the average that each step keeps; about 1 / (1 − decay) steps count."""
    warmup: bool = True
    """Keep less in the first steps, (1 + t) / (10 + t), so that the start is soon forgotten."""


class UnfreezeConfig(Config):
    """Parameters that learn only from some point of the run on."""

    at: Duration
    """When they begin to learn."""
    parameters: Annotated[Seq[str], Field(min_length=1)]
    """Patterns of parameter names, such as `features.*`, or names of the model's stages."""


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
    compile: Literal["auto"] | bool = "auto"
    """`torch.compile` of the training step, plain engine only. `auto` tries it where training takes
    more than half an hour, and keeps it where it saves more than it costs."""
    checkpoint_activations: bool = False
    """Keep only what passes between the model's stages for the backward pass, and compute the rest
    again (Chen et al., 2016): less memory, a third more time."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest global L2 norm of the gradient."""
    early_stopping: EarlyStoppingConfig | None = None
    ema: EmaConfig | None = None
    unfreeze: Seq[UnfreezeConfig] = ()
    """What is frozen at first, and from when it learns (Howard and Ruder, 2018, section 3.3).
    The optimizer starts anew at each of these points."""
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
