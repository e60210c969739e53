"""`orch evaluate`: how good something trained is on a split."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from orchestrator.cli.common import json_option, json_stdout, runs_dir_option


@click.command("evaluate")
@click.argument("target")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "select", "test"]),
    default="val",
    show_default=True,
    help="Reading `test` is recorded.",
)
@runs_dir_option
@json_option
def evaluate_command(target: str, split: str, runs_dir: Path, as_json: bool) -> None:
    """Measure TARGET (a run, a sweep's ensemble, an ensemble) on a split of its data."""
    with json_stdout(as_json) as emit:
        from orchestrator import api

        values = api.measure(target, split, runs_dir=runs_dir)
        if values is not None:
            emit({"split": split, "name": Path(target).name, **values})
            text = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
            said = f"{Path(target).name} on {split}: {text}"
        else:
            line = api.evaluate(target, split, runs_dir=runs_dir)
            emit({"split": split, **asdict(line)})
            said = (
                f"{line.name} on {split}: accuracy {line.accuracy:.2%}, NLL {line.nll:.4f} "
                f"({line.samples:,} samples, {line.parameters:,} parameters, {line.members} models)"
            )
    if not as_json:
        click.echo(said)
