"""`orch schema`: the JSON Schema of the file."""

from __future__ import annotations

import click

from orchestrator.cli.common import print_json


@click.command("schema")
@click.option(
    "--plugin", "plugins", multiple=True, metavar="MODULE", help="Include a module's own parts."
)
def schema_command(plugins: tuple[str, ...]) -> None:
    """Print the JSON Schema (draft 2020-12) of an experiment file.

    Editors use it to complete and check: write it to a file and name that in the first line of
    an experiment, as `# yaml-language-server: $schema=orch.schema.json`.
    """
    from orchestrator.config.plugins import load_plugins
    from orchestrator.config.schema import json_schema

    load_plugins(plugins)
    print_json(json_schema())
