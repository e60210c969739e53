"""What `--dry-run` prints."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import click

from orchestrator import api
from orchestrator.cli.common import print_table
from orchestrator.config.experiment import ExperimentConfig
from orchestrator.plan.memory_plan import gib
from orchestrator.plan.report import MemoryReport

_COLUMNS = (
    "parameters",
    "gradients",
    "optimizer",
    "activations",
    "communication",
    "samples",
    "peak",
)


def show_plan(
    config: ExperimentConfig, *, quiet: bool, address: str | None = None
) -> dict[str, Any]:
    """Prints a file's plan for this machine or a cluster, and returns it as JSON."""
    plan = api.plan(config, memory=True, address=address)
    if not quiet:
        _show_run(config, plan)
        for shortage in plan.shortages:
            click.echo(f"note    {shortage}")
        if plan.memory is None:
            click.echo(f"memory  not planned: {plan.memory_note}")
        else:
            _show_memory(plan.memory, plan.workers, plan.batch_size)
            _show_time(plan, plan.memory.flops)
    return {"name": config.name, **asdict(plan)}


def _show_run(config: ExperimentConfig, plan: api.Plan) -> None:
    splits = ", ".join(f"{size:,} {name}" for name, size in plan.sizes.items())
    shape = "×".join(map(str, plan.shape))
    click.echo(f"data    {config.data.source.type}: {splits}; a sample is {shape}")
    frozen = plan.parameters - plan.trainable
    click.echo(f"model   {config.model.type}: {plan.parameters:,} parameters, {frozen:,} frozen")
    if plan.weights:
        click.echo(f"weights {plan.weights}")
    click.echo(
        f"steps   {plan.total_steps:,} of {plan.batch_size} samples, "
        f"{plan.steps_per_epoch:,} an epoch ({config.train.duration})"
    )
    if plan.trials:
        click.echo(f"trials  {plan.trials}, at most {plan.trials * plan.total_steps:,} steps")


def _show_memory(memory: MemoryReport, workers: int, batch_size: int) -> None:
    """One line for each engine, in bytes on one worker."""
    many, each = ("worker", "") if workers == 1 else ("workers", "each ")
    click.echo(
        f"memory  {workers} {many} on {memory.device}, {memory.precision}, "
        f"{memory.memory_format}; in a step of {batch_size} samples {each}"
        f"{memory.accumulation} × {memory.micro_batch}"
    )
    rows = [
        [str(one["engine"]), *(gib(one[name]) for name in _COLUMNS), "yes" if one["fits"] else "no"]
        for one in memory.engines
    ]
    print_table(["engine", *_COLUMNS, "fits"], rows, right=range(1, len(_COLUMNS) + 1))
    room = memory.room
    click.echo(f"room    {gib(room['each'])} for each worker ({gib(room['total'])} {room['what']})")
    if memory.evaluation > room["each"]:
        click.echo(f"note    evaluating takes {gib(memory.evaluation)}; lower evaluate.batch_size")
    changes = " ".join(f"{key}={value}" for key, value in memory.choice.items())
    click.echo(f"choose  {changes}\n        {memory.why}" if changes else f"choose  {memory.why}")


def _show_time(plan: api.Plan, flops: int) -> None:
    work = f"work    {_scaled(flops)}FLOP a step, {_scaled(flops * plan.total_steps)}FLOP in all"
    if plan.step_seconds is None:
        click.echo(f"{work}; how long that takes here was not measured yet")
        return
    whole = plan.step_seconds * plan.total_steps
    alone = ", without what workers tell each other" if plan.workers > 1 else ""
    click.echo(
        f"{work}; {plan.step_seconds:.3g} s a step measured here before, so about {_time(whole)} "
        f"of training{alone}"
    )


def _scaled(value: float) -> str:
    """Three digits and a decimal prefix: `1.23 T`."""
    prefixes = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
    power = min(int(math.log10(max(value, 1)) // 3), len(prefixes) - 1)
    return f"{value / 1000**power:.3g} {prefixes[power]}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
