"""`orch validate`: everything that is wrong in a file, without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.common import json_option, json_stdout, split_overrides
from orchestrator.errors import ConfigError, UserError

if TYPE_CHECKING:
    from orchestrator.config.experiment import ExperimentConfig


@click.command("validate")
@click.argument("arguments", nargs=-1, required=True, metavar="CONFIG... [KEY=VALUE]...")
@click.option(
    "--build",
    is_flag=True,
    help="Read data and weights too, and build the network without its memory.",
)
@json_option
def validate_command(arguments: tuple[str, ...], build: bool, as_json: bool) -> int:
    """Check each CONFIG, with KEY=VALUE overrides, and say everything that is wrong.

    Neither reads data nor loads PyTorch, unless asked to --build. Exit code 2 if any file has a
    problem.
    """
    files, overrides = split_overrides(arguments)
    if not files:
        raise click.UsageError("name a file; what contains '=' is an override")
    with json_stdout(as_json) as emit:
        reports = [_report(file, overrides, build) for file in files]
        emit({"format": 1, "files": reports})
    for report in [] if as_json else reports:
        _show(report)
    return 0 if all(report["ok"] for report in reports) else 2


def _report(file: Path, overrides: list[str], build: bool) -> dict[str, Any]:
    from orchestrator.config.digest import config_digest
    from orchestrator.config.load import load_config

    try:
        config = load_config(file, overrides)
        built = _build(config) if build else {}
    except ConfigError as error:
        problems = [{"where": p.where, "key": p.key, "message": p.message} for p in error.problems]
        return {"file": str(file), "ok": False, "problems": problems, "text": str(error)}
    facts = {"name": config.name, "digest": config_digest(config), **built}
    return {"file": str(file), "ok": True, **facts}


def _build(config: ExperimentConfig) -> dict[str, str]:
    """The second phase: does the network fit the data, and do the weights fit the network?"""
    from orchestrator import api

    try:
        found = api.plan(config)
    except ConfigError:
        raise
    except UserError as error:
        raise ConfigError(str(error)) from error
    return {"weights": found.weights} if found.weights else {}


def _show(report: dict[str, Any]) -> None:
    if report["ok"]:
        click.echo(f"{report['file']}: ok (name {report['name']}, digest {report['digest'][:12]})")
        if report.get("weights"):
            click.echo(f"  model.weights: {report['weights']}")
        return
    count = len(report["problems"])
    click.echo(report["text"], err=True)
    click.echo(f"{report['file']}: {count} problem{'s' * (count != 1)}", err=True)
