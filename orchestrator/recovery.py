"""A run whose first steps do not fit in memory begins again with smaller micro-batches."""

from __future__ import annotations

import errno
import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from orchestrator.allocator import give_freed_memory_back
from orchestrator.config.digest import config_digest
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.config.load import derive, dump_yaml
from orchestrator.errors import OutOfMemoryError, ResourceError
from orchestrator.run_folder.checkpoint import Checkpoints
from orchestrator.run_folder.opening import OpenedRun
from orchestrator.run_folder.paths import RunPaths
from orchestrator.run_folder.records import drop_after, read_lines

FIRST_STEPS = 3
"""Steps in which memory that runs out is the micro-batch's fault; by then all state is there."""
EVENT = "out_of_memory"
_MARKS = (
    "can't allocate memory",  # PyTorch's allocator for CPUs
    "not enough memory",
    "out of memory",  # CUDA's libraries, where PyTorch's own allocator did not ask
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_WAYS_OUT = (
    "use a smaller model or image, engine.type=deepspeed with engine.zero_stage and several "
    "workers, or a machine with more memory; `orch train FILE --dry-run` says what each takes"
)
_log = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)


def in_building(error: BaseException) -> OutOfMemoryError:
    """What to raise where memory ran out before the first step."""
    return OutOfMemoryError(
        f"memory ran out before the first step: {_line(error)}. The network, its optimizer's state "
        f"or the data do not fit; {_WAYS_OUT}",
        FIRST_STEPS,
    )


def in_training(error: BaseException, step: int) -> OutOfMemoryError:
    """What to raise where memory ran out in training, after so many steps."""
    return OutOfMemoryError(
        f"memory ran out in step {step + 1}: {_line(error)}; lower train.micro_batch", step
    )


@contextmanager
def evaluating(config: ExperimentConfig) -> Iterator[None]:
    """Says what to do where memory runs out inside the block; the micro-batch would not help.

    Raises:
        ResourceError: in place of what says that memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"memory ran out while evaluating: {_line(error)}; lower evaluate.batch_size "
            f"({config.evaluate.batch_size})"
        ) from error


def may_restart(error: OutOfMemoryError, paths: RunPaths) -> bool:
    """Whether a run is so young that it begins again rather than goes on."""
    return error.step < FIRST_STEPS and not Checkpoints(paths.checkpoints).valid()


def smaller(config: ExperimentConfig, error: OutOfMemoryError) -> ExperimentConfig:
    """The file with half the micro-batch, and so twice the accumulation: the same step.

    Raises:
        OutOfMemoryError: if there is nothing left to halve.
    """
    micro_batch = config.train.micro_batch
    assert micro_batch != "auto"
    if micro_batch == 1:
        raise OutOfMemoryError(
            f"memory ran out in step {error.step + 1} even with one sample a forward pass "
            f"(train.micro_batch=1); {_WAYS_OUT}",
            FIRST_STEPS,
        )
    return derive(config, {"train.micro_batch": micro_batch // 2})


def begin_again(
    opened: OpenedRun, config: ExperimentConfig, error: OutOfMemoryError
) -> ExperimentConfig:
    """Rewrites a run's folder for smaller micro-batches, from step 0, and notes why.

    Returns:
        The file to go on with.

    Raises:
        OutOfMemoryError: if there is nothing left to halve.
    """
    changed = smaller(config, error)
    before, after = config.train.micro_batch, changed.train.micro_batch
    message = (
        f"memory ran out in step {error.step + 1}; begins again with micro-batches of {after} "
        f"instead of {before}, the batch stays {config.train.batch_size}"
    )
    _log.warning(message)
    opened.reconfigure(config_digest(changed), dump_yaml(changed))
    drop_after(opened.paths.metrics, 0)
    opened.status.rewind(0, 0.0, None)
    opened.events.record(EVENT, message, before=before, after=after, why=str(error))
    return changed


def adopt(config: ExperimentConfig, earlier: ExperimentConfig, paths: RunPaths) -> ExperimentConfig:
    """The file with the micro-batch that its run was brought down to, if it asks for the first."""
    events = [line for line in read_lines(paths.events) if line["event"] == EVENT]
    if not events or config.train.micro_batch != events[0]["before"]:
        return config
    return derive(config, {"train.micro_batch": earlier.train.micro_batch})


def release(error: BaseException) -> None:
    """Lets go of what a failed step still holds: its exception keeps every frame alive."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    gc.collect()
    give_freed_memory_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
