"""Where a pipeline cuts a model: which of its stages each rank holds."""

from __future__ import annotations

import inspect
import itertools
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.config.base import Part
from orchestrator.config.engines import PipelineEngineConfig
from orchestrator.errors import ConfigError, UserError
from orchestrator.models.layers.penalties import penalised
from orchestrator.models.stages import Stage
from orchestrator.optim.names import stages_of
from orchestrator.tasks.base import Task

WARMUP, TIMED = 2, 5
"""Passes over the model before and while its stages are timed."""


def check_pipeline(engine: Part, model: nn.Module, task: Task) -> None:
    """Refuses what a pipeline can't run; nothing for other engines.

    Raises:
        ConfigError: if the model has too few stages, or the task does more than call the model.
    """
    if isinstance(engine, PipelineEngineConfig):
        check_stages(engine, model)
        check_task(task)


def check_task(task: Task) -> None:
    """Refuses a task with a forward pass of its own.

    Raises:
        ConfigError: naming the task.
    """
    if not task.calls_model_once:
        raise ConfigError(
            "engine.type=pipeline runs tasks whose forward pass is one call of the model, but "
            f"{type(task).__name__} has one of its own; use engine.type: deepspeed"
        )


def check_stages(engine: PipelineEngineConfig, model: nn.Module) -> Sequence[Stage]:
    """The model's stages.

    Raises:
        ConfigError: if there are fewer than the pipeline's, the file's cut has another number,
            some parameter belongs to none, or a layer has a term of its own in the loss.
    """
    stages = stages_of(model)
    name = type(model).__name__
    if layers := penalised(model):
        raise ConfigError(
            f"engine.type=pipeline leaves out what layers add to the loss, as {name}'s "
            f"{type(layers[0]).__name__} does; use engine.type: deepspeed, or another layer"
        )
    if len(stages) < engine.stages:
        have = f"{len(stages)}" if stages else "no `stages` method, so it is one stage"
        raise ConfigError(
            f"engine.stages must not exceed the model's own stages, but got {engine.stages} and "
            f"{name} has {have}; lower engine.stages, take a deeper model, or give yours a "
            "`stages` method"
        )
    if engine.cut is not None and sum(engine.cut) != len(stages):
        raise ConfigError(
            f"engine.cut must add up to the model's {len(stages)} stages, but {list(engine.cut)} "
            f"is {sum(engine.cut)}; leave it out to have it chosen"
        )
    held = {id(one) for stage in stages for one in stage.parameters()}
    if free := [key for key, one in model.named_parameters() if id(one) not in held]:
        raise ConfigError(
            f"a pipeline needs every parameter to belong to a stage, but no stage of {name} has "
            f"{', '.join(free[:5])}; add them to its `stages`"
        )
    return stages


# --- balance -------------------------------------------------------------------------------


def choose_cut(engine: PipelineEngineConfig, stages: Sequence[Stage]) -> tuple[int, ...]:
    """How many of the model's stages each rank holds: the file's cut, else even in parameters.

    Times are measured before an engine is made, and then are the file's cut.
    """
    return engine.cut or balanced(parameter_counts(stages), engine.stages)


def parameter_counts(stages: Sequence[Stage]) -> list[int]:
    """Parameters of each stage; a shared one counts where it is used first."""
    seen: set[int] = set()
    counts = []
    for stage in stages:
        fresh = {id(one): one.numel() for one in stage.parameters() if id(one) not in seen}
        counts.append(sum(fresh.values()))
        seen |= fresh.keys()
    return counts


def balanced(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Cuts a sequence into non-empty runs so that the largest sum of a run is least.

    By dynamic programming over (runs so far, items so far). Of equal choices the one with the
    earlier cuts is taken.

    Returns:
        The lengths of the runs.
    """
    sums = [0.0, *itertools.accumulate(costs)]
    count = len(costs)
    best: list[tuple[float, tuple[int, ...]]] = [(sums[end], (end,)) for end in range(count + 1)]
    for part in range(2, parts + 1):
        best = [
            min(
                (
                    (max(best[start][0], sums[end] - sums[start]), (*best[start][1], end - start))
                    for start in range(part - 1, end)
                ),
                default=(float("inf"), ()),
            )
            for end in range(count + 1)
        ]
    return best[count][1]


def stage_seconds(model: nn.Module, inputs: dict[str, Tensor]) -> list[float]:
    """Measured seconds of each stage's forward and backward pass; changes no parameter.

    Args:
        model: in training mode and memory format, under the autocast, that it will train in.
        inputs: of one micro-batch, on the model's device.
    """
    rounds: list[list[float]] = []
    # Whole passes, as in training, in which a stage finds the caches full of the others' data; the
    # first ones are slow where kernels and memory are got ready, most of all in the first stages.
    for _ in range(WARMUP + TIMED):
        state: Any = stage_input(model, inputs)
        seconds = []
        for stage in stages_of(model):
            taken, state = _timed(stage, state)
            seconds.append(taken)
        rounds.append(seconds)
    # What else the machine does only ever adds time.
    return [min(column) for column in zip(*rounds[WARMUP:], strict=True)]


def _timed(stage: Stage, state: Any) -> tuple[float, Any]:
    """Seconds, and what the stage put out, cut off from its graph."""
    entry = _leaf(state)
    held = [one for one in stage.parameters() if one.requires_grad]
    _wait(entry)
    began = time.perf_counter()
    out = stage.fn(_copied(entry))
    roots = [one for one in _tensors(out) if one.requires_grad]
    leaves = [one for one in [*_tensors(entry), *held] if one.requires_grad]
    if roots and leaves:
        ones = [torch.ones_like(one) for one in roots]
        torch.autograd.grad(roots, leaves, ones, allow_unused=True)
    _wait(out)
    return time.perf_counter() - began, _leaf(out)


def _leaf(state: Any) -> Any:
    """The same values, of which those that can have a gradient ask for one."""
    if isinstance(state, tuple):
        return tuple(_leaf(one) for one in state)
    return state.detach().requires_grad_(state.requires_grad)


def _copied(state: Any) -> Any:
    """Copies, because a stage may write to what it is given, and a leaf refuses that."""
    if isinstance(state, tuple):
        return tuple(one.clone() for one in state)
    return state.clone()


def _tensors(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


def _wait(state: Any) -> None:
    if _tensors(state)[0].is_cuda:
        torch.cuda.synchronize()


def stage_input(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor | tuple[Tensor, ...]:
    """What the first stage takes: the one input, or several in the order of `forward`.

    Raises:
        UserError: if `forward` has no place for one of them.
    """
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    names = list(inspect.signature(model.forward).parameters)
    if missing := sorted(inputs.keys() - set(names)):
        raise UserError(
            f"{type(model).__name__}.forward takes {', '.join(names)}, but the data also has "
            f"{', '.join(missing)}; choose a model that reads them"
        )
    return tuple(inputs[name] for name in names if name in inputs)
