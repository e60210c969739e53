"""The `serve:` section: how trained models answer over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from orchestrator.config.base import Config, OneOf, Part, Seq, part
from orchestrator.config.numbers import NonNegative, Positive

Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""Fit for a URL, and never a path."""
_RULES = "orchestrator.serve.traffic.rules"


# --- which version answers -----------------------------------------------------------------


class _Rule(Part):
    """What every rule has.

    `shadows` are versions that get a copy of each request; nobody waits for what they answer.
    """

    shadows: Seq[Name] = ()
    sticky: bool = True
    """Requests with the same `X-Orch-Client` header go to the same version."""


@part("traffic", "latest", build=f"{_RULES}:latest")
class Latest(_Rule):
    """The version that was added last answers."""

    type: Literal["latest"] = "latest"


@part("traffic", "weighted", build=f"{_RULES}:weighted")
class Weighted(_Rule):
    """Versions answer in proportion to their weights (A/B)."""

    type: Literal["weighted"] = "weighted"
    weights: dict[Name, NonNegative] = Field(min_length=1)

    @model_validator(mode="after")
    def _some_weight(self) -> Weighted:
        if not sum(self.weights.values()) > 0:
            raise ValueError(f"one weight must be above 0, but got {self.weights}")
        return self


@part("traffic", "canary", build=f"{_RULES}:canary")
class Canary(_Rule):
    """A new version gets a growing share; it is taken back when it fails more or is slower."""

    type: Literal["canary"] = "canary"
    stable: Name
    canary: Name
    steps: Seq[Share] = (0.01, 0.05, 0.25, 1.0)
    """Shares of the requests, one after another."""
    requests_per_step: Positive = 200
    """Answers of the canary that a step waits for."""
    errors: Share = 0.01
    """How much more often than the stable version it may fail."""
    latency_ratio: Annotated[float, Field(gt=0)] = 1.5
    """How much slower its 95th percentile may be."""

    @model_validator(mode="after")
    def _sound(self) -> Canary:
        if self.stable == self.canary:
            raise ValueError(f"stable and canary are two versions, but both are {self.stable!r}")
        steps = list(self.steps)
        if not steps or steps[0] <= 0 or steps != sorted(set(steps)):
            raise ValueError(f"steps grow and begin above 0, but are {steps}")
        return self


@part("traffic", "bandit", build=f"{_RULES}:bandit")
class Bandit(_Rule):
    """Thompson sampling (Thompson 1933) on the rewards that clients report for versions."""

    type: Literal["bandit"] = "bandit"
    versions: Seq[Name] = Field(min_length=1)
    explore: Share = 0.0
    """Share of the requests whose version is drawn evenly, whatever was learnt."""


# --- the section ---------------------------------------------------------------------------


class Replicas(Config):
    """As many replicas as the load asks for."""

    min: Positive = 1
    max: Positive = 1
    batches: Annotated[float, Field(gt=0)] = 2.0
    """Batches under way and waiting, a replica, above which another one is started."""
    up_seconds: NonNegative = 5.0
    """How long that must last until one is started."""
    down_seconds: NonNegative = 60.0
    """How long fewer must be enough until one is ended."""

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.min > self.max:
            raise ValueError(f"min <= max must hold, but got (min={self.min}, max={self.max})")
        return self


class ServeLimits(Config):
    """What a client may ask for."""

    body_mb: Annotated[float, Field(gt=0)] = 32
    megapixels: Annotated[float, Field(gt=0)] = 64
    """Of one image, by its header, before anything is decoded."""
    decode_seconds: Annotated[float, Field(gt=0)] = 5
    receive_seconds: Annotated[float, Field(gt=0)] = 30
    """How long a client may take to send its request."""
    compute_seconds: Annotated[float, Field(gt=0)] = 30
    """How long one forward pass may take before its replica counts as hung."""
    waiting: Positive = 1024
    """Samples of one model that wait at most; more are refused with status 429."""
    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    """Of one client (its API key, or its address), with bursts of twice as many."""


class RequestLog(Config):
    """Keeps inputs and answers as Parquet, for later labels and training."""

    folder: str
    sample: Share = 0.01
    """Share of the requests that is kept."""

    def absolute(self) -> RequestLog:
        """The same with the folder's whole path, which does not depend on where a process runs."""
        return self.model_copy(update={"folder": str(Path(self.folder).expanduser().absolute())})


class TlsConfig(Config):
    """PEM files of HTTPS: the certificate (with those between it and a root), and its key."""

    cert: str
    key: str


class ServedVersion(Config):
    """A version of a model: its name in URLs, and the run, sweep or ensemble that answers."""

    name: Name
    version: Name = "1"
    target: str


class ServeConfig(Config):
    """How trained models answer over HTTP."""

    replicas: Positive | Replicas = 1
    """Processes of each version, or `{min: 1, max: 4}`."""
    cpus: NonNegative = 1
    """CPU cores of each replica."""
    gpus: NonNegative = 0
    executor: Literal["auto", "torch", "stacked", "compiled", "onnx"] = "auto"
    """What runs the network: `auto` measures those that give the same numbers."""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "fp32"
    """`auto` takes the fastest whose probabilities stay within `tolerance` of fp32's."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.01
    max_batch: Positive | Literal["auto"] = "auto"
    """Samples in one forward pass; `auto` measures where more bring nothing."""
    batch_wait_ms: NonNegative | Literal["auto"] = "auto"
    """How long a batch that is not full waits although a replica is free; `auto` divides what is
    under way evenly, and waits for such a share for half of the time that batches take."""
    deadline_ms: Annotated[float, Field(gt=0)] | None = None
    """By when an ensemble answers with the members that are done, if they are `quorum`."""
    quorum: Positive = 1
    early_exit: Share | None = None
    """An ensemble stops asking members once those before agree with this probability."""
    limits: ServeLimits = ServeLimits()
    log: RequestLog | None = None
    tls: TlsConfig | None = None
    standby: bool = True
    """Whether a second gateway waits to take the port of one that ends; it costs its memory."""
    models: Seq[ServedVersion] = ()
    """Versions beside the targets of the command line."""
    traffic: dict[Name, Annotated[Part, OneOf("traffic")]] = Field(default_factory=dict)
    """By model: which version answers; `latest` where nothing is said."""
