"""What `--dry-run` prints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from orchestrator import api
from orchestrator.config.experiment import ExperimentConfig


def show_plan(config: ExperimentConfig, *, quiet: bool) -> dict[str, Any]:
    """Prints a file's plan, and returns it as JSON."""
    plan = api.plan(config)
    if not quiet:
        splits = ", ".join(f"{size:,} {name}" for name, size in plan.sizes.items())
        click.echo(f"data    {config.data.source.type}: {splits}")
        frozen = plan.parameters - plan.trainable
        click.echo(
            f"model   {config.model.type}: {plan.parameters:,} parameters, {frozen:,} frozen"
        )
        click.echo(
            f"steps   {plan.total_steps:,} of {config.train.batch_size} samples, "
            f"{plan.steps_per_epoch:,} an epoch ({config.train.duration})"
        )
        if plan.trials:
            click.echo(f"trials  {plan.trials}, at most {plan.trials * plan.total_steps:,} steps")
    return {"name": config.name, **asdict(plan)}
