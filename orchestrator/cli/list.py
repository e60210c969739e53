"""`orch list`: what can stand behind a `type:`."""

from __future__ import annotations

import click

from orchestrator.cli.common import json_option, print_json
from orchestrator.errors import UnknownNameError

KINDS = {
    "models": "model",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "losses": "loss",
    "augmentations": "augmentation",
    "sources": "source",
    "loaders": "loader",
    "tasks": "task",
    "engines": "engine",
    "samplers": "sampler",
    "schedulers": "scheduler",
    "distributions": "distribution",
    "ensembles": "ensemble",
}
"""What the user writes, and what the registry calls it."""


@click.command("list", epilog=f"KIND is one of: {', '.join(KINDS)}.")
@click.argument("kind", metavar="KIND")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="MODULE", help="Include a module's own parts."
)
@json_option
def list_command(kind: str, plugins: tuple[str, ...], as_json: bool) -> None:
    """List the names of one KIND with a line about each."""
    if kind not in KINDS:
        raise UnknownNameError("kind", kind, KINDS)
    from orchestrator.config.base import entries
    from orchestrator.config.plugins import load_plugins

    load_plugins(plugins)
    found = [(entry.name, entry.summary) for entry in entries(KINDS[kind])]
    if as_json:
        items = [{"name": name, "summary": summary} for name, summary in found]
        print_json({"format": 1, "kind": kind, "items": items})
        return
    width = max((len(name) for name, _ in found), default=0)
    for name, summary in found:
        click.echo(f"{name:<{width}}  {summary}")
