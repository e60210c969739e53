"""`orch ensemble`: which trained models answer best together."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.common import json_option, json_stdout, runs_dir_option


@click.command("ensemble")
@click.argument("targets", nargs=-1, required=True)
@click.option("--method", default="greedy", show_default=True, help="See `orch list ensembles`.")
@click.option("--size", type=click.IntRange(1), default=5, show_default=True, help="Most members.")
@click.option("--name", default="ensemble", show_default=True, help="Its folder under runs/.")
@runs_dir_option
@json_option
def ensemble_command(
    targets: tuple[str, ...], method: str, size: int, name: str, runs_dir: Path, as_json: bool
) -> None:
    """Choose an ensemble from TARGETS (runs, or sweeps for their trials)."""
    from orchestrator.config.base import find
    from orchestrator.config.pipeline import EnsembleConfig

    part = find("ensemble", method).config(type=method)
    config = EnsembleConfig(method=part, size=size)
    with json_stdout(as_json) as emit:
        from orchestrator import api

        chosen = api.ensemble(targets, config, name=name, runs_dir=runs_dir)
        members = [{"run": str(member.path), "weight": member.weight} for member in chosen.members]
        emit({"ensemble": str(runs_dir / name), "members": members, "select": chosen.select})
    if not as_json:
        for member in chosen.members:
            click.echo(f"{member.weight:6.3f}  {member.path}")
        shown = ", ".join(f"{key} {value:.4f}" for key, value in chosen.select.items())
        click.echo(f"on the select split: {shown}\nkept in {runs_dir / name}")
